"""Renders the manifests of jobs on Kubernetes, and creates, finds, follows and stops jobs in a cluster."""
