"""Every claim on a real kernel under each runtime, and every probe on the negative controls.

``cellblock verify`` runs the same probes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orchestrator.isolation.claims import Claim
from orchestrator.isolation.controls import CONTROLS, Control
from orchestrator.isolation.subject import Subject
from orchestrator.isolation.verification import CLAIMS, Laboratory, check_controls

pytestmark = pytest.mark.asyncio(loop_scope="module")

HARMLESS = [claim for claim in CLAIMS if not claim.attacks]
ATTACKS = [claim for claim in CLAIMS if claim.attacks]


def name_of(item: Claim | Control) -> str:
    return item.name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def subject(bench: Laboratory) -> AsyncIterator[Subject]:
    """Start one kernel for all harmless probes."""
    async with bench.subject() as started:
        yield started


@pytest.mark.parametrize("claim", HARMLESS, ids=name_of)
async def test_claim(subject: Subject, claim: Claim) -> None:
    """The claim about what a cell finds, or how the engine configured the container, holds."""
    verdict = await claim.probe(subject)
    assert verdict.holds, f"{claim.promise} {verdict.evidence}"


@pytest.mark.parametrize("claim", ATTACKS, ids=name_of)
@pytest.mark.alone
async def test_claim_under_attack(bench: Laboratory, claim: Claim) -> None:
    """The claim about an attack holds, on a kernel of its own."""
    (finding,) = await bench.examine([claim])
    assert finding.verdict.holds, f"{claim.promise} {finding.verdict.evidence}"


async def test_every_probe_turns_red_where_its_defence_is_missing(bench: Laboratory) -> None:
    """Each negative control turns its probes red, and each probe is turned red by at least one control."""
    checks = await check_controls(bench, CONTROLS)
    assert {check.control.name: check.fault or check.missed for check in checks if not check.passed} == {}
    refuted = {name for check in checks for name in check.reds}
    assert {claim.name for claim in CLAIMS} - refuted == set()
