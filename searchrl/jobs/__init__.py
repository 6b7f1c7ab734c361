"""Jobs on Kubernetes: which manifests there are, how they are rendered, and how runs are found and stopped."""
