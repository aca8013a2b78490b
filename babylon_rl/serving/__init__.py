"""Serving: versions in front of agents, and markets in front of outside agents.

The gateway (gateway_process.py) takes a chat_request.py, admits its client (access.py), chooses a version (routing.py, of the state in
live_state.py), asks it (upstreams.py) and spools the call (call_entry.py, spool.py), which call_writer.py writes to the database. Releases
move versions through rollouts (releases.py, promotion.py) and A/B tests (ab_tests.py). The admin API (admin_api.py, admin_shapes.py) and
its page show the status (status.py, status_shapes.py), start trainings (dagster_client.py) and move releases.
market_server.py serves markets, inference.py agents that call a model server themselves.
"""
