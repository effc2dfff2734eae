"""Lets LiteLLM's router, in its own environment, ask a decision server which of its tiers a prompt belongs to.

Arguments: the decision server's URL, the models' URL. Prompts come as a JSON list on standard input; one JSON object with what
LiteLLM's client of the contract, and its router, made of the answers goes to standard output.
"""

import asyncio
import json
import sys

import litellm


async def main(decisions: str, models: str, prompts: list[str]) -> None:
    question = {"type": "choice", "instructions": "Who should answer?", "criteria": {"billing": "Invoices", "other": None}}
    answered = await litellm.asystemone(
        model="typesafe/jev-latest",
        state="I was charged twice.",
        questions={"team": question},
        api_base=decisions,
        api_key="sk-test",
    )
    tiers = {name: f"{name.lower()}-model" for name in ("SIMPLE", "MEDIUM", "COMPLEX", "REASONING")}
    router = litellm.Router(
        model_list=[
            *(
                {"model_name": model, "litellm_params": {"model": f"openai/{model}", "api_base": models, "api_key": "sk-model"}}
                for model in tiers.values()
            ),
            {
                "model_name": "smart",
                "litellm_params": {
                    "model": "auto_router/complexity_router",
                    "complexity_router_config": {
                        "tiers": tiers,
                        "classifier_type": "oss_classifier",
                        "opensource_classifier_config": {
                            "provider": "jev",
                            "model": "jev-latest",
                            "api_base": decisions,
                            "api_key": "sk-test",
                            "timeout_ms": 20000,
                        },
                    },
                    "complexity_router_default_model": "medium-model",
                },
            },
        ]
    )
    chosen = []
    for prompt in prompts:
        reply = await router.acompletion("smart", messages=[{"role": "user", "content": prompt}])
        chosen.append(reply.model)
    print(json.dumps({"answer": answered.model_dump(), "chosen": chosen}))


asyncio.run(main(*sys.argv[1:], json.load(sys.stdin)))
