"""A stand-in of the serverless training service: its HTTP as ART's client speaks it, jobs that take time, and faults.

``standing_in()`` serves it on loopback for a block; ``python -m babylon_rl_tests.training.serverless_stand_in`` as a process that goes
on when its client is killed.
"""

from babylon_rl_tests.training.serverless_stand_in.http import StandIn, standing_in
from babylon_rl_tests.training.serverless_stand_in.jobs import JobFault, Payload, read_payload
from babylon_rl_tests.training.serverless_stand_in.service import PostFault, Service, TrainedJob

__all__ = ["JobFault", "Payload", "PostFault", "Service", "StandIn", "TrainedJob", "read_payload", "standing_in"]
