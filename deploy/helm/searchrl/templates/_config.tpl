{{/* Settings files of the services: the user's `config`, then the values that the chart decides. */}}

{{/* Context: deployment's, computed (dict), own (the user's), httpPort. */}}
{{- define "searchrl.configFile" -}}
{{- $listen := dict "host" .root.Values.listenHost "http_port" (.httpPort | default 8080) "grpc_port" 9090 "drain_seconds" .svc.drainSeconds }}
{{- if .usesTls }}
{{- $_ := set $listen "tls_certificate" "/etc/searchrl/tls/tls.crt" }}
{{- $_ := set $listen "tls_private_key" "/etc/searchrl/tls/tls.key" }}
{{- end }}
{{- $base := dict "listen" $listen }}
{{- if ne .root.Values.auth.mode "off" }}
{{- $_ := set $base "auth_keys_file" "/etc/searchrl/keys/keys" }}
{{- end }}
{{- mergeOverwrite (deepCopy .own) $base .computed | toYaml }}
{{- end }}

{{- define "searchrl.configMap" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "searchrl.name" . }}
  labels: {{- include "searchrl.labels" . | nindent 4 }}
data:
  config.yaml: |
    {{- include (printf "searchrl.config.%s" .component) . | trim | nindent 4 }}
{{- end }}

{{/* gRPC address of a service: the headless one, so that clients see every pod. Context: root, component. */}}
{{- define "searchrl.target" -}}
{{- if and (eq .component "retriever") (not .root.Values.retriever.enabled) }}
{{- .root.Values.retriever.externalTarget }}
{{- else }}
{{- printf "%s-headless:9090" (include "searchrl.name" .) }}
{{- end }}
{{- end }}

{{/* Folder of index generations. Context: svc. */}}
{{- define "searchrl.indexFolder" -}}
{{- if hasPrefix "pvc://" .svc.index.uri }}
{{- include "searchrl.modelFolder" (dict "uri" .svc.index.uri) }}
{{- else }}
{{- printf "/data/indexes/%s" .svc.index.name }}
{{- end }}
{{- end }}

{{- define "searchrl.config.retriever" -}}
{{- $config := dict "index_dir" (include "searchrl.indexFolder" .) }}
{{- if .svc.builds }}
{{- $_ := set $config "builds" (dict "corpus_root" "/data/corpora") }}
{{- end }}
{{- include "searchrl.configFile" (merge (dict "computed" $config "own" .svc.config) .) }}
{{- end }}

{{/* Engine settings of the generator service for a role. Context: root, role. */}}
{{- define "searchrl.engineSettings" -}}
{{- $engine := index .root.Values.engines .role }}
{{- if eq $engine.kind "reader" }}
{{- dict "kind" "reader" | toJson }}
{{- else }}
{{- $structured := or (eq $engine.kind "vllm") $engine.url.structuredOutputs }}
{{- dict "kind" "url" "base_url" (include "searchrl.engineUrl" .) "model" (include "searchrl.engineModel" .) "structured_outputs" $structured | toJson }}
{{- end }}
{{- end }}

{{- define "searchrl.config.generator" -}}
{{- $root := .root }}
{{- $engines := $root.Values.engines }}
{{- $config := dict "engine" (include "searchrl.engineSettings" (dict "root" $root "role" "generator") | fromJson) }}
{{- if ne $engines.judge.kind "generator" }}
{{- $_ := set $config "judge" (dict "engine" (include "searchrl.engineSettings" (dict "root" $root "role" "judge") | fromJson)) }}
{{- end }}
{{- if or $root.Values.retriever.enabled $root.Values.retriever.externalTarget }}
{{- $_ := set $config "retriever" (dict "target" (include "searchrl.target" (dict "root" $root "component" "retriever"))) }}
{{- end }}
{{- if ne $engines.searcher.kind "none" }}
{{- $searcher := dict "root" $root "role" "searcher" }}
{{- $folder := include "searchrl.modelFolder" (dict "uri" $engines.searcher.model) }}
{{- $_ := set $config "searcher" (dict "model_dir" $folder "base_url" (include "searchrl.engineUrl" $searcher) "model" (include "searchrl.engineModel" $searcher)) }}
{{- end }}
{{- if and (eq $engines.generator.kind "vllm") (not (dig "context" "tokenizer_dir" "" .svc.config)) }}
{{- $_ := set $config "context" (dict "tokenizer_dir" (include "searchrl.modelFolder" (dict "uri" $engines.generator.model))) }}
{{- end }}
{{- include "searchrl.configFile" (merge (dict "computed" $config "own" .svc.config) .) }}
{{- end }}

{{- define "searchrl.config.evaluator" -}}
{{- $generator := dict "target" (include "searchrl.target" (dict "root" .root "component" "generator")) }}
{{- $config := dict "store" "/data/evaluations/results.sqlite" "questions_dir" "/data/questions" "generator" $generator }}
{{- $_ := set $config "retriever" (dict "target" (include "searchrl.target" (dict "root" .root "component" "retriever"))) }}
{{- include "searchrl.configFile" (merge (dict "computed" $config "own" .svc.config) .) }}
{{- end }}

{{- define "searchrl.config.engine-searcher" -}}
{{- include "searchrl.config.policyServer" . }}
{{- end }}

{{/* Environment of each component: where its settings are, and secrets by reference. */}}
{{- define "searchrl.env" -}}
{{- if hasPrefix "engine-" .component }}
{{- include (printf "searchrl.env.%s" .svc.kind) . }}
{{- else }}
- {name: {{ upper .component }}_CONFIG, value: /etc/searchrl/config.yaml}
{{- include (printf "searchrl.env.%s" .component) . }}
{{- end }}
{{- end }}

{{/* One variable with the key that services use to call each other. Context: list of root, variable. */}}
{{- define "searchrl.clientKey" -}}
{{- $root := index . 0 }}
{{- if ne $root.Values.auth.mode "off" }}
- name: {{ index . 1 }}
  valueFrom: {secretKeyRef: {name: {{ include "searchrl.authSecret" $root }}, key: client-key}}
{{- end }}
{{- end }}

{{/* One variable with an engine's API key. Context: list of engine, variable. */}}
{{- define "searchrl.engineKey" -}}
{{- with (index . 0).apiKey }}
{{- if .existingSecret }}
- name: {{ index $ 1 }}
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "searchrl.env.retriever" -}}
{{- with .root.Values.redis }}
{{- if eq .mode "external" }}
- name: RETRIEVER_CACHE__REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ .external.existingSecret }}, key: {{ .external.key }}}}
{{- else if eq .mode "embedded" }}
{{- $host := include "searchrl.name" (dict "root" $.root "component" "redis") }}
{{- if .existingSecret }}
- name: REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: password}}
- {name: RETRIEVER_CACHE__REDIS_URL, value: "redis://:$(REDIS_PASSWORD)@{{ $host }}:6379/0"}
{{- else }}
- {name: RETRIEVER_CACHE__REDIS_URL, value: "redis://{{ $host }}:6379/0"}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "searchrl.env.generator" -}}
{{- $engines := .root.Values.engines }}
{{- if or .root.Values.retriever.enabled .root.Values.retriever.externalTarget }}
{{- include "searchrl.clientKey" (list .root "GENERATOR_RETRIEVER__KEY") }}
{{- end }}
{{- if has $engines.generator.kind (list "url" "vllm") }}
{{- include "searchrl.engineKey" (list $engines.generator "GENERATOR_ENGINE__KEY") }}
{{- end }}
{{- if has $engines.judge.kind (list "url" "vllm") }}
{{- include "searchrl.engineKey" (list $engines.judge "GENERATOR_JUDGE__ENGINE__KEY") }}
{{- end }}
{{- if eq $engines.searcher.kind "policyServer" }}
{{- include "searchrl.clientKey" (list .root "GENERATOR_SEARCHER__KEY") }}
{{- else if ne $engines.searcher.kind "none" }}
{{- include "searchrl.engineKey" (list $engines.searcher "GENERATOR_SEARCHER__KEY") }}
{{- end }}
{{- end }}

{{- define "searchrl.env.evaluator" -}}
{{- include "searchrl.clientKey" (list .root "EVALUATOR_GENERATOR__KEY") }}
{{- include "searchrl.clientKey" (list .root "EVALUATOR_RETRIEVER__KEY") }}
{{- end }}
