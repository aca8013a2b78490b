"""The database: connections, migrations, rows as typed structs, all SQL, and the embedded server."""
