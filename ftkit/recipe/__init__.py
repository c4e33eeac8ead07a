"""A recipe: read (`yaml`, `load`), its keys (`keys`), checked (`validate`), described for editors (`schema`)."""
