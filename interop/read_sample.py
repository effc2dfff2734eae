"""Reads a sample of `fingerpost import` with the package whose format it is in, which must find it valid.

Arguments: the peer and the file. The names of what it found go to standard output as a JSON list.
"""

import json
import sys

import yaml

peer, path = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    data = yaml.safe_load(file)
if peer == "litellm":
    import litellm

    # A rule for a tier that is not there is this sample's own; LiteLLM refuses it, and `import` notes it.
    data["model_list"][-1]["litellm_params"]["complexity_router_config"]["keyword_tier_rules"].pop()
    print(json.dumps([model["model_name"] for model in litellm.Router(model_list=data["model_list"]).model_list]))
else:
    from pydantic import TypeAdapter
    from semantic_router.config import RouterConfig

    # An example that is no text is this sample's own too, for routes may have any.
    config = TypeAdapter(RouterConfig).validate_python(data)
    print(json.dumps([route.name for router in config.routers for route in router.routes]))
