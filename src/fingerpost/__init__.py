"""fingerpost: one OpenAI-compatible endpoint that sends each conversation to the model that fits.

A **Conversation** of **Messages** comes in at a door. **Constraints** strike out what cannot serve it (no vision, no tools,
too long). A **Classifier** says what it believes about the **Routes**: a **Verdict** with calibrated probabilities. A pure
**policy** turns constraints, verdict and thresholds into a **Decision**: one Route, its **Backends** in the order to try, and
why. The **Gateway** sends a **Call** to the first that answers (each try is an **Attempt**) and streams the **Reply** back byte
for byte. When it is over, one **Exchange** tells the story once to the **Observers**. Where **Clients** need keys, each request
is a **Visit** of one, admitted by its limits and settled in a Ledger.

The rooms, from the outermost to the innermost; a room imports only rooms further in:

    cli | testing > server | nat > train > evals | demo > assemble > config | gateway > router
        > policy | classifiers | observers | clients | attempts | deadlines | headers > upstreams > records
        > routes | chat | sfc > once, hollow, heads > splice > errors
"""

from fingerpost.chat import ChatRequest, Conversation, Message
from fingerpost.errors import ConfigError, FingerpostError
from fingerpost.records import Decision, Exchange, Verdict
from fingerpost.router import Router
from fingerpost.routes import Backend, Route, RouteTable

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "ChatRequest",
    "ConfigError",
    "Conversation",
    "Decision",
    "Exchange",
    "FingerpostError",
    "Message",
    "Route",
    "RouteTable",
    "Router",
    "Verdict",
]
