"""`python -m nav_server check PICTURE`: the way that a service goes, in five parts: connection, profile, policy, the
factory, a picture.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nav_agent import toolset
from nav_server import policy as policies
from nav_server.profile import take_profile

_LIMIT_S = 120.0
_QUESTION = "Describe obstacles and free paths in one short sentence."


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`python -m nav_server check`."""
    parser = commands.add_parser("check", help="connection, profile, policy, factory and a picture, in turn")
    parser.add_argument("picture", type=Path, help="a JPEG or PNG to look at")
    policies.add_settings(parser)
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    # Here, since they bring torch, whose import takes seconds that other commands do not have.
    from nav_common.data import AskRequest, CompressedImage, PrimeRequest
    from nav_server.backends.factory import load_engine, make
    from vlm_perception import pictures, prompting
    from vlm_perception.guard import Guard, GuardSettings
    from vlm_perception.scheduler import ModelThread

    try:
        data = options.picture.read_bytes()
        pictures.decode(data)
    except (OSError, pictures.BrokenPictureError) as error:
        raise ValueError(f"picture {options.picture}: {error}") from None
    sources = policies.sources_of(options)
    profile = take_profile(sources.settings.lmstudio_host, sources.settings.ollama_host)
    for server in (profile.lm_studio, profile.ollama):
        print(f"1 connection  {server.name}: {', '.join(server.models) if server.runs else server.problem}")
    print(f"2 profile     {profile.machine_class}: {profile.reason}")
    policy = policies.decide(sources, profile)
    print(
        f"3 policy      {policy.vision.kind} sees ({policy.vision.backend.reason}), {policy.planning.kind} plans"
    )
    thread = ModelThread(lambda error: None)
    thread.start()
    guard = Guard(GuardSettings.around(policy.vision.max_tokens.value, policy.break_ms.value))
    backends = make(
        policy, guard, lambda role: load_engine(role, thread, torch_threads=_threads()), lambda error: None
    )
    backend = backends.stream()
    print(f"4 factory     {backend.status().backend}")
    primed = backend.submit_prime(PrimeRequest(backends.system_prompt, toolset.tools_json()))
    taken = backend.submit_frames([CompressedImage(1.0, data)])
    in_words = backend.answers_in_words
    question, choices = (_QUESTION, ()) if in_words else (prompting.WAY_FREE_QUESTION, prompting.YES_NO)
    ticket = backend.submit_ask(AskRequest(question, choices))
    answered = primed.wait(_LIMIT_S) and taken.wait(_LIMIT_S) and ticket.wait(_LIMIT_S)
    answer = ticket.result.answer or ticket.result.message if answered else f"no answer in {_LIMIT_S:g} s"
    asked = "" if in_words else f"{question} "
    print(f"5 picture     {asked}{answer}")
    good = answered and ticket.result.success
    backend.close()
    backends.close()
    return 0 if good else 1


def _threads() -> int:
    return max(1, (os.cpu_count() or 2) // 2)
