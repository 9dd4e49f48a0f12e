"""Workers' calls on a service itself, without HTTP."""

from __future__ import annotations

from typing import Any

from hpo_service.operations import asking, workers
from hpo_service.operations.calls import Ask, Heartbeat, Release, Reports, Tell
from hpo_service.operations.service import Service
from hpo_service.operations.study_call import CallerLeft, never


async def ask_study(service: Service, name: str, ask: Ask, caller_left: CallerLeft = never) -> Any:
    return await asking.ask_study(service, name, ask).answer(service, caller_left)


async def report(service: Service, name: str, number: int, body: Reports) -> Any:
    return await workers.on_trial(service, "report", name, number, body).answer(service)


async def heartbeat(service: Service, name: str, number: int, body: Heartbeat) -> Any:
    return await workers.on_trial(service, "heartbeat", name, number, body).answer(service)


async def tell(service: Service, name: str, number: int, body: Tell) -> Any:
    return await workers.on_trial(service, "tell", name, number, body).answer(service)


async def release(service: Service, name: str, number: int, body: Release) -> Any:
    return await workers.on_trial(service, "release", name, number, body).answer(service)
