"""The content-addressed store and what fills it by hash: HTTP, git, local folders, mirrors."""
