"""Texts of the simulated world: companies, questions and headlines.

There are two disjoint editions: ``TRAINING`` for simulated hours, ``HELD_OUT`` for benchmark markets. So a policy is measured on
companies, questions and wordings that no training hour contains.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Edition:
    """One set of words; ``{c}`` in a headline is the company's name.

    ``good``, ``bad`` and ``neutral`` are headlines about a company; ``toward_yes`` and ``toward_no`` about a question.
    """

    name: str
    companies: tuple[tuple[str, float], ...]
    questions: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]
    neutral: tuple[str, ...]
    toward_yes: tuple[str, ...]
    toward_no: tuple[str, ...]


TRAINING = Edition(
    name="training",
    companies=(
        ("Bluff Social", 57.0),
        ("Gasly Motors", 212.0),
        ("Mirage Cloud", 340.0),
        ("Hype Foods", 24.0),
        ("Orbital Bank", 88.0),
        ("Vapor Games", 46.0),
        ("Quantum Toast", 131.0),
        ("Nimbus Air", 63.0),
        ("Sloth Logistics", 35.0),
        ("Titan Diet", 19.0),
        ("Echo Robotics", 405.0),
        ("Placebo Health", 74.0),
    ),
    questions=(
        "Will {c} launch a phone that only plays apologies?",
        "Will {c} rename itself after its founder's cat?",
        "Will {c} open a casino on the moon?",
        "Will {c} let an algorithm run its board?",
        "Will {c} sell bottled silence before winter?",
        "Will {c} put its logo on a mountain?",
    ),
    good=(
        "{c} beats earnings expectations",
        "Analysts upgrade {c} to strong buy",
        "{c} raises its profit forecast",
        "{c} wins a record government contract",
        "Regulator approves the main product of {c}",
        "{c} sales surge past every estimate",
        "Investors rush into {c} after brilliant demo",
        "{c} signs a huge deal with a major client",
        "{c} doubles its dividend",
        "Customers queue overnight for the new {c} product",
        "{c} cuts costs and posts record margins",
        "Court clears {c} of all charges",
        "{c} announces a large share buyback",
        "Rival gives up and leaves the market to {c}",
        "{c} secures cheap funding for growth",
        "Strong demand lifts {c} orders to a new high",
        "{c} breakthrough impresses scientists",
        "Famous fund takes a big stake in {c}",
    ),
    bad=(
        "{c} misses earnings expectations",
        "Analysts downgrade {c} to sell",
        "{c} cuts its profit forecast",
        "{c} loses its largest customer",
        "Regulator opens a fraud probe into {c}",
        "{c} sales collapse below every estimate",
        "Investors flee {c} after disastrous demo",
        "Major client cancels its deal with {c}",
        "{c} scraps its dividend",
        "{c} recalls its main product after fires",
        "{c} posts a huge loss as costs explode",
        "Court finds {c} guilty of cheating",
        "{c} warns that it is running out of cash",
        "Hackers steal the customer data of {c}",
        "Chief executive of {c} quits in scandal",
        "Weak demand forces {c} to close factories",
        "{c} flagship fails its safety test",
        "Famous fund dumps its entire stake in {c}",
    ),
    neutral=(
        "{c} schedules its annual meeting",
        "{c} moves to a new office",
        "{c} to speak at a conference",
        "{c} redesigns its logo",
        "{c} publishes its yearly report on time",
        "Staff of {c} hold a bake sale",
    ),
    toward_yes=(
        "Insiders confirm that the plan is going ahead",
        "Leaked memo shows that everything is ready",
        "Officials approve the plan",
        "The founder promises that it will happen this week",
        "Witnesses see the preparations finished",
        "Contract signed for the plan",
    ),
    toward_no=(
        "Insiders admit that the plan is dead",
        "Leaked memo shows that nothing is ready",
        "Officials reject the plan",
        "The founder denies that it will ever happen",
        "Witnesses see the preparations abandoned",
        "Contract cancelled for the plan",
    ),
)

HELD_OUT = Edition(
    name="held-out",
    companies=(
        ("Cobalt Circus", 92.0),
        ("Lumen Pets", 41.0),
        ("Zephyr Steel", 150.0),
        ("Pine Software", 233.0),
        ("Delta Pickles", 28.0),
        ("Granite Dating", 67.0),
        ("Velvet Energy", 118.0),
        ("Harbor Drones", 310.0),
        ("Ember Coffee", 36.0),
        ("Polar Insurance", 79.0),
    ),
    questions=(
        "Will {c} replace its managers with parrots?",
        "Will {c} buy a small country?",
        "Will {c} ship a car without wheels?",
        "Will {c} hold its next meeting under water?",
    ),
    good=(
        "{c} reports a surprisingly high profit",
        "{c} lands a billion-dollar order",
        "Critics praise the new {c} product as a triumph",
        "{c} growth accelerates on booming demand",
        "Bank lifts its price target for {c}",
        "{c} wins its patent case",
        "{c} partners with an industry leader",
        "{c} pays off all of its debt early",
        "Record crowds buy from {c}",
    ),
    bad=(
        "{c} reports an unexpected loss",
        "{c} loses a billion-dollar order",
        "Critics mock the new {c} product as a failure",
        "{c} growth stalls on falling demand",
        "Bank slashes its price target for {c}",
        "{c} loses its patent case",
        "Partner walks out on {c}",
        "{c} defaults on its debt",
        "Boycott empties the shops of {c}",
    ),
    neutral=("{c} repaints its headquarters", "{c} names a new office manager", "{c} updates its privacy page"),
    toward_yes=("Sources say that the plan is certain now", "The board votes for the plan", "Crews begin the work on the plan"),
    toward_no=("Sources say that the plan is off", "The board votes against the plan", "Crews stop the work on the plan"),
)
