"""Lets semantic-router's decision router, in its own environment, ask a decision server which route a query belongs to.

Arguments: the decision server's URL. Queries come as a JSON list on standard input; a JSON list with each query's route,
and how sure the router is, goes to standard output.
"""

import json
import sys

from semantic_router import Route
from semantic_router.decision_models import SystemOneDecisionModel
from semantic_router.routers import DecisionRouter

ROUTES = [
    Route(name="billing", description="Invoices, payments and refunds."),
    Route(name="delivery", utterances=["Where is my parcel?", "When will it arrive?"]),
]

model = SystemOneDecisionModel(name="fingerpost", base_url=sys.argv[1], api_key="sk-test", timeout=60)
router = DecisionRouter(model, ROUTES, confidence_threshold=0.5)
try:
    found = [router(query) for query in json.load(sys.stdin)]
    print(json.dumps([[choice.name, choice.confidence] for choice in found]))
finally:
    router.close()
