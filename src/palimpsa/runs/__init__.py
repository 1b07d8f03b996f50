"""One run on disk: its directory and files, its identity, its result, where it came from, how far it is.

`directory` decides whether a run is finished, resumes or is refused; `identity` hashes its config, `protocol` what a
figure's runs share; `result` writes and judges result.json, `rows`, `schema` and `read` say what files hold;
`provenance`, `progress`; `exit_codes` of commands; `files` has the atomic write and the locks. Imports `config` alone,
and never torch when it is imported; `text`, `training`, `analysis`, `sweeps` and `benchmark` may import it.
"""
