"""Client of chat endpoints: transports, one retry policy, a synchronous interface, prices."""
