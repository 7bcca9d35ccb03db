"""Cell types from a labelled reference, one file a method.

A module holds ::

    assign(counts, *, reference, types, n_types, seed, progress, **options) -> (labels, proportions, info)

counts CSR [n, g] and reference CSR [m, g] over the same genes, both raw; types int [m]; labels int32 [n], proportions
float32 [n, types], rows summing to one, and facts.
"""
