"""What is an opening, and what is a request that sounds like one."""

from __future__ import annotations

import pytest

from fingerpost.classifiers.embedded.courtesy import without_opening

ASKED = "my card was eaten by the machine"


@pytest.mark.parametrize("opening", [
    "Hi,", "Hello there!", "good morning,", "Good evening to you.", "Dear team,", "Hey,",
    "Hi! I hope you are well.", "Hello, I hope you’re having a great day!", "Sorry to bother you again,", "Quick question:",
    "Excuse me, could you help me with something?", "I was just wondering,", "Thanks in advance for your time.",
    "Hey there. I know you're very busy. I'd be really grateful for some help.", "Um, one more thing:", "Hi hi, me again!",
    "If you have a minute, I have a question.", "Would you be so kind as to help me out?", "hello\n\n",
])  # fmt: skip
def test_an_opening_is_left_out(opening: str) -> None:
    assert without_opening(f"{opening} {ASKED}") == ASKED


@pytest.mark.parametrize("text", [
    ASKED, "hi", "hey, balance", "Good morning! I hope you are well.", "Thanks, that was wrong again",
    "Thank you. What time is it?", "In the morning, please wake me", "this evening, what is on?", "No, that's not it",
    "Hello world is the first program, isn't it?", "I have a question about my bill. Why so high?", "Can you sing? I can't",
    "", "!?", "What a day, tell me a joke", "¡Hola! ¿Qué tal?", "x" * 5000,
    "Would you do it again, please? In German",
])  # fmt: skip
def test_a_request_stays_whole(text: str) -> None:
    assert without_opening(text) == text


def test_time_grows_no_faster_than_a_long_opening_does() -> None:
    text = "hi, " * 100_000 + ASKED
    assert len(without_opening(text)) >= len(text) - 520
