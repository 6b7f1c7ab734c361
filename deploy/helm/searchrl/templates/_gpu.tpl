{{/* GPU profiles: what a pod on such a device requests. Context: root, component, svc, key. */}}

{{- define "searchrl.gpuProfile" -}}
{{- $name := .svc.gpu.profile }}
{{- if not (hasKey .root.Values.gpuProfiles $name) }}
{{- include "searchrl.fail" (list (printf "%s.gpu.profile" .key) $name (printf "one of %s, or add the profile to gpuProfiles" (keys .root.Values.gpuProfiles | sortAlpha | join ", "))) }}
{{- end }}
{{- $profile := index .root.Values.gpuProfiles $name | default dict }}
{{- $count := int .svc.gpu.count }}
{{- $isGpu := or $profile.resourceName $profile.deviceClassName }}
{{- if and $isGpu (lt $count 1) }}
{{- include "searchrl.fail" (list (printf "%s.gpu.count" .key) $count (printf "at least 1 with the profile %s, or gpu.profile=none" $name)) }}
{{- end }}
{{- if and (not $isGpu) (gt $count 0) }}
{{- include "searchrl.fail" (list (printf "%s.gpu.count" .key) $count (printf "0 with the profile %s, which has no GPU, or a gpu.profile such as full" $name)) }}
{{- end }}
{{- toJson $profile }}
{{- end }}

{{/* Requests and limits of the main container; devices are in both, as Kubernetes requires for extended resources. */}}
{{- define "searchrl.resources" -}}
{{- $profile := include "searchrl.gpuProfile" . | fromJson }}
{{- $resources := deepCopy .svc.resources }}
{{- if $profile.resourceName }}
{{- $device := dict $profile.resourceName (toString .svc.gpu.count) }}
{{- /* merge writes into its first argument: each use needs a copy, or the limits would end up in the requests. */}}
{{- $_ := set $resources "limits" (merge (deepCopy $device) ($resources.limits | default dict)) }}
{{- $_ := set $resources "requests" (merge (deepCopy $device) ($resources.requests | default dict)) }}
{{- end }}
{{- if $profile.deviceClassName }}
{{- $_ := set $resources "claims" (list (dict "name" "gpu")) }}
{{- end }}
{{- if not (dig "limits" "memory" "" $resources) }}
{{- include "searchrl.fail" (list (printf "%s.resources.limits.memory" .key) "" "a memory limit, such as 4Gi") }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "searchrl.claimTemplate" -}}
{{- $profile := include "searchrl.gpuProfile" . | fromJson }}
{{- if $profile.deviceClassName }}
{{- include "searchrl.requireApi" (list .root "resource.k8s.io/v1" (printf "%s.gpu.profile" .key) "Kubernetes 1.34 with a DRA driver") }}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata:
  name: {{ include "searchrl.name" . }}-gpu
  labels: {{- include "searchrl.labels" . | nindent 4 }}
spec:
  spec:
    devices:
      requests:
        - name: gpu
          exactly:
            deviceClassName: {{ $profile.deviceClassName }}
            count: {{ .svc.gpu.count }}
{{- end }}
{{- end }}

{{/* Does this pod have devices? "yes" or nothing. */}}
{{- define "searchrl.isGpu" -}}
{{- if gt (int .svc.gpu.count) 0 }}yes{{ end -}}
{{- end }}
