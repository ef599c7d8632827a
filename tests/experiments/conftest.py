"""Makes the stand-ins beside this file importable in the folders below."""
