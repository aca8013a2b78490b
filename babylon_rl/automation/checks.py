"""All asset checks: warnings for a person, and errors that block a release."""

from babylon_rl.automation.checks_batches import checks_of_batches
from babylon_rl.automation.checks_gate import checks_of_gate
from babylon_rl.automation.checks_hindsight import checks_of_hindsight
from babylon_rl.automation.checks_hours import checks_of_hours
from babylon_rl.automation.checks_judge import checks_of_judge
from babylon_rl.automation.checks_market import checks_of_markets

asset_checks = [*checks_of_hours, *checks_of_markets, *checks_of_hindsight, *checks_of_judge, *checks_of_batches, *checks_of_gate]
