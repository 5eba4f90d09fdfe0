"""POST /tokenize and /detokenize: a variant's own tokenizer and chat template.

Owns: these routes. Does not know generation.
"""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from tsugiki.api.auth import AccessDep
from tsugiki.api.prompts import encode_chat, encode_prompt
from tsugiki.api.responses import Text, Tokens, documented_errors
from tsugiki.api.sampling import check_token_ids
from tsugiki.api.schemas import DetokenizeBody, TokenizeBody
from tsugiki.api.services import ServicesDep
from tsugiki.errors import InvalidRequest

router = APIRouter(tags=["tokens"])


@router.post("/tokenize", response_model=Tokens, responses=documented_errors(404))
async def tokenize(body: TokenizeBody, services: ServicesDep, access: AccessDep) -> Response:
    """Token ids of a prompt, or of messages through the chat template."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give either prompt or messages", param="prompt")
    text = services.engine.text(access.resolve(body.model))
    limit = services.engine.max_model_len()
    if body.messages is not None:
        messages = [message.for_template() for message in body.messages]
        ids = await encode_chat(messages, body.chat_template_kwargs or {}, text, limit)
    elif body.prompt == "":
        ids = ()
    else:
        special = body.add_special_tokens is not False
        ids = await encode_prompt(body.prompt or "", text, limit, add_special_tokens=special)
    answer = {"tokens": ids, "count": len(ids), "max_model_len": limit}
    if body.return_token_strs:
        answer["token_strs"] = [text.token(token_id) for token_id in ids]
    return JSONResponse(answer)


@router.post("/detokenize", response_model=Text, responses=documented_errors(404))
async def detokenize(body: DetokenizeBody, services: ServicesDep, access: AccessDep) -> Response:
    """Text of token ids; special tokens stay visible unless asked otherwise."""
    text = services.engine.text(access.resolve(body.model))
    check_token_ids(body.tokens, text, "tokens")
    shown = text.decode(body.tokens, skip_special_tokens=bool(body.skip_special_tokens))
    return JSONResponse({"prompt": shown})
