"""The admin page of `serve admin`: HTML from the server, one style sheet and one script."""
