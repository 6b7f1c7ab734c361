{{/* Objects beside a Deployment: Services, disruption budget, autoscaler. Context: deployment's. */}}

{{- define "searchrl.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "searchrl.name" . }}{{ if .headless }}-headless{{ end }}
  labels: {{- include "searchrl.labels" . | nindent 4 }}
spec:
  {{- if .headless }}
  clusterIP: None
  {{- end }}
  selector: {{- include "searchrl.selectorLabels" . | nindent 4 }}
  ports:
    {{- range $name, $number := .ports }}
    - name: {{ $name }}
      port: {{ $number }}
      targetPort: {{ $name }}
      appProtocol: {{ $.usesTls | default false | ternary "https" (eq $name "grpc" | ternary "kubernetes.io/h2c" "http") }}
    {{- end }}
{{- end }}

{{- define "searchrl.pdb" -}}
{{- if .svc.pdb.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "searchrl.name" . }}
  labels: {{- include "searchrl.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .svc.pdb.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "searchrl.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end }}

{{- define "searchrl.autoscaler" -}}
{{- $auto := .svc.autoscaling }}
{{- if eq $auto.kind "hpa" }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "searchrl.name" . }}
  labels: {{- include "searchrl.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "searchrl.name" . }}}
  minReplicas: {{ $auto.minReplicas }}
  maxReplicas: {{ $auto.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ $auto.cpuUtilization }}}}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 300}
{{- else if eq $auto.kind "keda" }}
{{- include "searchrl.requireApi" (list .root "keda.sh/v1alpha1" (printf "%s.autoscaling.kind" .key) "KEDA") }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ include "searchrl.name" . }}
  labels: {{- include "searchrl.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {name: {{ include "searchrl.name" . }}}
  minReplicaCount: {{ $auto.minReplicas }}
  maxReplicaCount: {{ $auto.maxReplicas }}
  pollingInterval: 15
  cooldownPeriod: 300
  fallback: {failureThreshold: 4, replicas: {{ max (int $auto.minReplicas) (int .svc.replicas) }}}
  triggers:
    - type: prometheus
      metadata:
        serverAddress: {{ .root.Values.monitoring.keda.serverAddress }}
        query: {{ $auto.query | default (include "searchrl.kedaQuery" .) | quote }}
        threshold: {{ $auto.threshold | quote }}
        ignoreNullValues: "false"
{{- end }}
{{- end }}

{{/* Load per release, summed over pods: KEDA divides it by the threshold. */}}
{{- define "searchrl.kedaQuery" -}}
{{- $pods := printf "namespace=%q,pod=~%q" .root.Release.Namespace (printf "%s-.*" (include "searchrl.name" .)) }}
{{- if and (hasPrefix "engine-" .component) (eq .svc.kind "vllm") }}
{{- printf "sum(vllm:num_requests_waiting{%s}) + sum(vllm:num_requests_running{%s})" $pods $pods }}
{{- else if hasPrefix "engine-" .component }}
{{- printf "sum(searchrl_policy_server_requests_waiting{%s})" $pods }}
{{- else if eq .component "generator" }}
{{- printf "sum(searchrl_generator_in_flight{%s})" $pods }}
{{- else }}
{{- printf "sum(searchrl_retriever_queue_depth_queries{%s})" $pods }}
{{- end }}
{{- end }}

{{/* Everything of one gRPC service. */}}
{{- define "searchrl.grpcService" -}}
{{ include "searchrl.configMap" . }}
---
{{ include "searchrl.deployment" . }}
---
{{ include "searchrl.service" . }}
---
{{ include "searchrl.service" (merge (dict "headless" true) .) }}
{{- include "searchrl.claimTemplate" . }}
{{- include "searchrl.pdb" . }}
{{- include "searchrl.autoscaler" . }}
{{- end }}

{{/* Probes of the gRPC services. gRPC readiness follows Health; with TLS the kubelet can only probe over HTTPS. Context: root, fullName. */}}
{{- define "searchrl.serviceProbes" -}}
{{- $tls := and .fullName .root.Values.tls.enabled | empty | not }}
{{- $scheme := $tls | ternary "HTTPS" "HTTP" }}
startup: {httpGet: {path: /livez, port: http, scheme: {{ $scheme }}}}
liveness: {httpGet: {path: /livez, port: http, scheme: {{ $scheme }}}}
{{- if and .fullName (not $tls) }}
readiness: {grpc: {port: 9090, service: {{ .fullName }}}}
{{- else }}
readiness: {httpGet: {path: /readyz, port: http, scheme: {{ $scheme }}}}
{{- end }}
{{- end }}
