{{/*
A Deployment of one service or engine. Context:
  root, component, svc, key (path of svc in the values), image (values of its image)
  command, args (lists or nothing), ports (dict name: number)
  startup, liveness, readiness (probe actions), waitFor (list of folders that must exist first)
  startupPeriod, startupTimeout (seconds, where they differ), scripts (files of the chart that the main container runs)
  usesConfig, usesKeys, usesTls, usesData ("ro" or "rw"), writableData, claims, usesSharedMemory
*/}}

{{- define "searchrl.deployment" -}}
{{- $svc := .svc }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "searchrl.name" . }}
  labels: {{- include "searchrl.labels" . | nindent 4 }}
spec:
  {{- if eq $svc.autoscaling.kind "none" }}
  replicas: {{ $svc.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  minReadySeconds: 2
  progressDeadlineSeconds: {{ add $svc.startupBudgetSeconds (.waitFor | empty | ternary 0 (include "searchrl.waitSeconds" . | int)) 120 }}
  selector:
    matchLabels: {{- include "searchrl.selectorLabels" . | nindent 6 }}
  strategy: {{- include "searchrl.strategy" . | nindent 4 }}
  template:
    metadata:
      labels:
        {{- include "searchrl.podLabels" . | nindent 8 }}
        {{- if .usesData }}
        searchrl.io/data: {{ include "searchrl.claimLabel" .root }}
        {{- end }}
        {{- with $svc.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with include "searchrl.podAnnotations" . | trim }}
      annotations: {{- . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "searchrl.podBase" .root | nindent 6 }}
      {{- include "searchrl.scheduling" . | trim | nindent 6 }}
      terminationGracePeriodSeconds: {{ include "searchrl.gracePeriod" . }}
      {{- if (include "searchrl.gpuProfile" . | fromJson).deviceClassName }}
      resourceClaims:
        - {name: gpu, resourceClaimTemplateName: {{ include "searchrl.name" . }}-gpu}
      {{- end }}
      {{- with .waitFor }}
      initContainers:
        - name: wait-for-files
          {{- include "searchrl.waitContainer" (merge (dict "folders" .) $) | nindent 10 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          {{- include "searchrl.mainContainer" . | nindent 10 }}
      volumes:
        {{- include "searchrl.volumes" . | nindent 8 }}
{{- end }}

{{- define "searchrl.mainContainer" -}}
{{- $svc := .svc -}}
image: {{ include "searchrl.image" (dict "root" .root "image" .image "key" (printf "%s.image" .key)) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- with .command }}
command: {{ toJson . }}
{{- end }}
{{- with .args }}
args: {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  {{- range $name, $number := .ports }}
  - {name: {{ $name }}, containerPort: {{ $number }}, protocol: TCP}
  {{- end }}
env:
  {{- include "searchrl.userEnv" . | nindent 2 }}
  {{- with include "searchrl.env" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if .usesTls }}
  - {name: SEARCHRL_TLS_AUTHORITY, value: /etc/searchrl/tls/ca.crt}
  {{- end }}
  {{- include "searchrl.tracingEnv" . | trim | nindent 2 }}
  {{- with $svc.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $svc.envFrom }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
resources: {{- include "searchrl.resources" . | nindent 2 }}
securityContext: {{- include "searchrl.containerSecurityContext" . | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
lifecycle: {preStop: {sleep: {seconds: {{ $svc.preStopSeconds }}}}}
startupProbe:
  {{- $period := .startupPeriod | default 2 }}
  {{- toYaml .startup | nindent 2 }}
  periodSeconds: {{ $period }}
  timeoutSeconds: {{ .startupTimeout | default 5 }}
  failureThreshold: {{ div (add $svc.startupBudgetSeconds $period -1) $period }}
livenessProbe:
  {{- toYaml .liveness | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  {{- toYaml .readiness | nindent 2 }}
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 2
volumeMounts:
  {{- include "searchrl.volumeMounts" . | nindent 2 }}
{{- end }}

{{/* The new pod starts beside the old one or, if devices are scarce, after it. */}}
{{- define "searchrl.strategy" -}}
{{- $inPlace := eq .svc.rollout "inPlace" }}
{{- if eq .svc.rollout "auto" }}{{ $inPlace = or .isSingle (include "searchrl.isGpu" .) }}{{ end }}
{{- if .isSingle -}}
type: Recreate
{{- else if $inPlace -}}
type: RollingUpdate
rollingUpdate: {maxSurge: 0, maxUnavailable: 1}
{{- else -}}
type: RollingUpdate
rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
{{- end }}
{{- end }}

{{/* SIGTERM must leave time to drain: grace >= preStop + drain + 5. */}}
{{- define "searchrl.gracePeriod" -}}
{{- $least := add .svc.preStopSeconds .svc.drainSeconds 5 }}
{{- $grace := .svc.terminationGracePeriodSeconds }}
{{- if kindIs "invalid" $grace }}
{{- add $least 5 }}
{{- else }}
{{- if lt (int $grace) (int $least) }}
{{- include "searchrl.fail" (list (printf "%s.terminationGracePeriodSeconds" .key) $grace (printf "at least %d (preStopSeconds %v + drainSeconds %v + 5), or null" (int $least) .svc.preStopSeconds .svc.drainSeconds)) }}
{{- end }}
{{- $grace }}
{{- end }}
{{- end }}

{{- define "searchrl.podAnnotations" -}}
{{- if .usesConfig }}
checksum/config: {{ include (printf "searchrl.config.%s" .component) . | sha256sum }}
{{- end }}
{{- with concat (.waitFor | empty | ternary list (list "wait_for_files.py")) (.scripts | default list) }}
{{- $texts := "" }}
{{- range . }}{{ $texts = print $texts ($.root.Files.Get (printf "files/%s" .)) }}{{ end }}
checksum/scripts: {{ sha256sum $texts }}
{{- end }}
{{- if .root.Values.monitoring.annotations }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .ports.http | quote }}
prometheus.io/path: /metrics
{{- if .usesTls }}
prometheus.io/scheme: https
{{- end }}
{{- end }}
{{- with .svc.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "searchrl.tracingEnv" -}}
{{- with .root.Values.tracing }}
{{- if .enabled }}
- {name: OTEL_SERVICE_NAME, value: searchrl-{{ $.component }}}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .endpoint | quote }}}
- {name: OTEL_EXPORTER_OTLP_PROTOCOL, value: {{ .protocol | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ .ratio | quote }}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ $.root.Release.Namespace }},service.namespace={{ $.root.Release.Name }}
{{- end }}
{{- end }}
{{- end }}

{{/* Seconds that a pod waits for its files: the time that fetching may take. */}}
{{- define "searchrl.waitSeconds" -}}
{{- (include "searchrl.fetchList" .root | fromJson).items | empty | ternary .svc.startupBudgetSeconds .root.Values.storage.fetchSeconds }}
{{- end }}

{{/* Init container that waits until folders exist on the storage. Context: deployment's, and folders. */}}
{{- define "searchrl.waitContainer" -}}
image: {{ include "searchrl.image" (dict "root" .root "image" .image "key" (printf "%s.image" .key)) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [python, /etc/searchrl/scripts/wait_for_files.py]
args: {{ concat (list "--seconds" (include "searchrl.waitSeconds" .)) (.verify | default false | ternary (list "--verify") list) .folders | toJson }}
env:
  {{- include "searchrl.userEnv" . | nindent 2 }}
resources:
  requests: {cpu: 10m, memory: 32Mi}
  limits: {memory: 128Mi}
securityContext: {{- include "searchrl.containerSecurityContext" . | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: home, mountPath: /tmp/home}
  - {name: scripts, mountPath: /etc/searchrl/scripts, readOnly: true}
  {{- if .usesData }}
  - {name: data, mountPath: /data, readOnly: true}
  {{- end }}
  {{- range $claim := .claims }}
  - {name: {{ include "searchrl.claimVolume" $claim }}, mountPath: /mnt/{{ $claim }}, readOnly: true}
  {{- end }}
{{- end }}
