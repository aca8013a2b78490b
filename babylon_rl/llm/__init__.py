"""Asking a chat endpoint: transports, one policy of retries, a client with a sync face, prices."""
