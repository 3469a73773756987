"""Errors of the Hugging Face Hub, which are of several families and nested, as one line that says what to do."""

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of httpx or httpx2, whichever huggingface_hub uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


def hub_error(e: Exception, repo: str, revision: str | None = None, *, kind: str = "model", instead: str) -> Exception:
    """The error to raise instead of ``e``, which a client of the Hub raised while it fetched ``repo``.

    ``kind`` is model or dataset; ``instead`` says what works without the Hub ("use ..."). The result is a
    PermissionError for what this account may not read, a FileNotFoundError for what does not exist (repository,
    revision, or offline and not in the cache), a ConnectionError for a fault of the network or the Hub, which says
    nothing about the repository, and ``e`` itself for everything else (a full disk, a malformed name).
    """
    chain: list[BaseException] = [e]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) not in (None, *chain):
        chain.append(cause)
    asked = f"{kind} {repo}" + (f" at revision {revision}" if revision else "")
    page = f"{constants.ENDPOINT}/{'' if kind == 'model' else f'{kind}s/'}{repo}"
    answer = next((x for x in chain if isinstance(x, HfHubHTTPError)), None)
    status = answer.response.status_code if answer else None
    if isinstance(answer, RevisionNotFoundError):
        return FileNotFoundError(f"{kind} {repo} has no revision {revision}; those that exist: {page}/commits")
    if isinstance(answer, GatedRepoError) or status == 403:
        return PermissionError(
            f"{asked} is gated ({status}): accept its licence at {page}, then run `hf auth login` with that account"
        )
    if isinstance(answer, RepositoryNotFoundError):
        return FileNotFoundError(
            f"the Hub has no public {kind} {repo} ({status}): check the name; if it is private or gated, accept its "
            f"licence at {page} and run `hf auth login`"
        )
    if status == 401:
        return PermissionError(f"the Hub does not know your token ({status}): run `hf auth login`, or unset HF_TOKEN")
    is_cut_off = is_offline_mode() and isinstance(e, ConnectionError)  # as `datasets` says it
    if is_cut_off or any(isinstance(x, OfflineModeIsEnabled) for x in chain):
        return FileNotFoundError(
            f"{asked} is not completely in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; unset it to download, "
            f"or {instead}"
        )
    if status or isinstance(e, HTTPError | LocalEntryNotFoundError | ConnectionError | TimeoutError | RuntimeError):
        first = answer or chain[-1]
        return ConnectionError(
            f"{asked} could not be fetched from {constants.ENDPOINT} ({type(first).__name__}: "
            f"{' '.join(str(first).split())}); run the same command again, which resumes the download. "
            f"Without a network, {instead}"
        )
    return e
