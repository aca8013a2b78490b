"""The parts under JudgeCaller: where a judge is reached, how one attempt is made, what its failures mean, when to try again."""
