"""What an attack costs a neighbour."""

from __future__ import annotations

from orchestrator.isolation.measure import Cost


def test_a_neighbour_may_be_slowed_to_twice_its_quiet_p99() -> None:
    """A p99 above twice the quiet p99 is a fault; without a neighbour there is none."""
    assert Cost(latencies=[0.02] * 200).slowdown(0.01) == []
    assert Cost(latencies=[0.0201] * 200).slowdown(0.01) == ["neighbour p99 20.1 ms, 10.0 ms before"]
    assert Cost().slowdown(0.01) == []


def test_the_cost_of_several_attacks_is_the_worst_of_each() -> None:
    """Maxima are kept, and latencies and errors of all attacks are joined."""
    total = Cost(memory=5, stall=0.1, loop_cpu=0.3, latencies=[1.0], errors=["a"])
    total.add(Cost(memory=3, stall=0.2, loop_cpu=0.1, latencies=[2.0], errors=["b"]))
    assert total == Cost(5, 0.2, 0.3, [1.0, 2.0], ["a", "b"])
