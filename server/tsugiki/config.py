"""ServeConfig: every setting of a server, from flags, TOML and environment. The only reader of env."""
