{{/* Names, labels and images. A context is a dict: root ($), component, svc (workload defaults merged with the service's values). */}}

{{- define "searchrl.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name -}}
{{- end }}

{{- define "searchrl.name" -}}
{{- include "searchrl.fullname" .root }}-{{ .component -}}
{{- end }}

{{- define "searchrl.selectorLabels" -}}
app.kubernetes.io/name: searchrl
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of pods. Without versions: a new version of the chart must not restart a pod or run a job again by its label alone. */}}
{{- define "searchrl.podLabels" -}}
{{ include "searchrl.selectorLabels" . }}
app.kubernetes.io/part-of: searchrl
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{/* Labels of every other object. */}}
{{- define "searchrl.labels" -}}
{{ include "searchrl.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* Reference of an image: registry/repository@digest, or :tag. Context: root, image, key (path in the values). */}}
{{- define "searchrl.image" -}}
{{- $registry := .image.registry | default .root.Values.image.registry }}
{{- $tag := .image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- $name := .image.repository }}
{{- if $registry }}{{ $name = printf "%s/%s" $registry .image.repository }}{{ end }}
{{- if .image.digest }}
{{- printf "%s@%s" $name .image.digest }}
{{- else }}
{{- if eq $tag "latest" }}
{{- include "searchrl.fail" (list (printf "%s.tag" .key) $tag "a released tag or a digest: 'latest' changes under a running release") }}
{{- end }}
{{- printf "%s:%s" $name $tag }}
{{- end }}
{{- end }}

{{- define "searchrl.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "searchrl.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "searchrl.claimName" -}}
{{- .Values.storage.existingClaim | default (printf "%s-data" (include "searchrl.fullname" .)) -}}
{{- end }}

{{/* The claim as a label's value, which has at most 63 characters. */}}
{{- define "searchrl.claimLabel" -}}
{{- $claim := include "searchrl.claimName" . -}}
{{- if gt (len $claim) 63 }}{{ printf "%s-%s" (trunc 54 $claim | trimSuffix "-" | trimSuffix ".") (sha256sum $claim | trunc 8) }}{{ else }}{{ $claim }}{{ end -}}
{{- end }}

{{- define "searchrl.authSecret" -}}
{{- if eq .Values.auth.mode "dev" }}{{ include "searchrl.fullname" . }}-dev-keys{{ else }}{{ .Values.auth.existingSecret }}{{ end -}}
{{- end }}

{{/* Stop the render. Context: list of key, value, what to write instead. */}}
{{- define "searchrl.fail" -}}
{{- $value := index . 1 }}
{{- if kindIs "invalid" $value }}{{ $value = "null" }}{{ else if eq (toString $value) "" }}{{ $value = "empty" }}{{ end }}
{{- fail (printf "\n\nsearchrl: %s is %v. Write %s.\n" (index . 0) $value (index . 2)) }}
{{- end }}

{{/* A custom resource's API must exist. Context: list of root, apiVersion, key, what installs it. */}}
{{- define "searchrl.requireApi" -}}
{{- $root := index . 0 }}
{{- if not ($root.Capabilities.APIVersions.Has (index . 1)) }}
{{- include "searchrl.fail" (list (index . 2) "on, but the cluster has no API" (printf "%s as false or none, or install %s (%s); for helm template add --api-versions %s" (index . 2) (index . 3) (index . 1) (index . 1))) }}
{{- end }}
{{- end }}
