"""How frames reach a device and come back. Takes plain values only: knows no settings and no filter."""
