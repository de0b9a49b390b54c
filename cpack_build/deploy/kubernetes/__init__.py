"""Manifests for Kubernetes, and applying them: what is asked for (:mod:`.options`), the pods (:mod:`.workload`), how
they are reached (:mod:`.traffic`) and scaled (:mod:`.autoscaling`), all together as a folder that Kustomize takes
(:mod:`.manifests`), and a cluster that is given them (:mod:`.apply`)."""
