"""The known datasets, one file each; every file registers what it defines."""
