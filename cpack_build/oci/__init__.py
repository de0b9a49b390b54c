"""OCI types, image layout, archives, registry client and container engines: where images come from and go to."""
