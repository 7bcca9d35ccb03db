"""Writers to foreign formats, one file each."""
