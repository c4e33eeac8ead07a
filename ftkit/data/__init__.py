"""The data: rows as they are found (`rows`, `hub`), a task made of them (`task`), and what is worth knowing (`audit`, `check`)."""
