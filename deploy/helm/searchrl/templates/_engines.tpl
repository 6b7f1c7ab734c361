{{/* Engines: their roles, addresses and model folders. */}}

{{/* Roles that run as a Deployment of the chart, separated by spaces. */}}
{{- define "searchrl.engineRoles" -}}
{{- range $role := list "generator" "judge" "searcher" }}
{{- if has (index $.Values.engines $role).kind (list "vllm" "policyServer") }} {{ $role }}{{ end }}
{{- end }}
{{- end }}

{{/* Base URL of a role's server. Context: root, role. */}}
{{- define "searchrl.engineUrl" -}}
{{- $engine := index .root.Values.engines .role }}
{{- if eq $engine.kind "url" }}
{{- $engine.url.baseUrl }}
{{- else }}
{{- printf "http://%s-engine-%s:8000" (include "searchrl.fullname" .root) .role }}
{{- end }}
{{- end }}

{{/* Name of the model at a role's server. */}}
{{- define "searchrl.engineModel" -}}
{{- $engine := index .root.Values.engines .role }}
{{- eq $engine.kind "url" | ternary $engine.url.model $engine.servedName }}
{{- end }}

{{/* Folder of a model in the pods. Context: uri. */}}
{{- define "searchrl.modelFolder" -}}
{{- $uri := trimSuffix "/" .uri }}
{{- if hasPrefix "pvc://" $uri }}
{{- printf "/mnt/%s" (trimPrefix "pvc://" $uri) }}
{{- else if hasPrefix "file://" $uri }}
{{- trimPrefix "file://" $uri }}
{{- else if contains "://" $uri }}
{{- printf "/data/models/%s" (include "searchrl.slug" $uri) }}
{{- else }}
{{- $uri }}
{{- end }}
{{- end }}

{{/* A folder name that is derived from the source and changes with it. */}}
{{- define "searchrl.slug" -}}
{{- printf "%s-%s" (regexReplaceAll "[^a-z0-9.]+" (lower (base .)) "-" | trunc 40) (sha256sum . | trunc 8) }}
{{- end }}

{{/* Does this URI name something to fetch into /data? "yes" or nothing. */}}
{{- define "searchrl.isRemote" -}}
{{- if and (contains "://" .) (not (hasPrefix "pvc://" .)) (not (hasPrefix "file://" .)) }}yes{{ end -}}
{{- end }}

{{/* Claim of a pvc:// URI, or nothing. */}}
{{- define "searchrl.claimOf" -}}
{{- if hasPrefix "pvc://" . }}{{ trimPrefix "pvc://" . | splitList "/" | first }}{{ end -}}
{{- end }}

{{/* Everything to fetch into /data, as JSON {"items": [{uri, to, sha256, key}]}. */}}
{{- define "searchrl.fetchList" -}}
{{- $items := list }}
{{- range .Values.storage.fetch }}
{{- $items = append $items (dict "uri" .uri "to" .to "sha256" (.sha256 | default "")) }}
{{- end }}
{{- with .Values.retriever }}
{{- if and .enabled .index.uri (not (hasPrefix "pvc://" .index.uri)) }}
{{- $items = append $items (dict "uri" .index.uri "to" (printf "indexes/%s" .index.name) "sha256" .index.sha256) }}
{{- end }}
{{- end }}
{{- range $role, $engine := .Values.engines }}
{{- if and (has $engine.kind (list "vllm" "policyServer")) (include "searchrl.isRemote" $engine.model) }}
{{- $items = append $items (dict "uri" $engine.model "to" (trimPrefix "/data/" (include "searchrl.modelFolder" (dict "uri" $engine.model))) "sha256" $engine.sha256) }}
{{- end }}
{{- end }}
{{- dict "items" ($items | uniq) | toJson }}
{{- end }}

{{/* The server of a role. Context: root, role, svc, key, component. Returns a dict to merge into the deployment's context. */}}
{{- define "searchrl.vllmArgs" -}}
{{- $e := .svc -}}
- {{ include "searchrl.modelFolder" (dict "uri" $e.model) }}
- --served-model-name={{ $e.servedName }}
- {{ printf "--host=%s" .root.Values.listenHost | quote }}
- --port=8000
- --dtype={{ $e.vllm.dtype }}
- --generation-config=vllm
- --max-num-seqs={{ $e.vllm.maxNumSeqs }}
{{- if $e.vllm.maxModelLen }}
- --max-model-len={{ int $e.vllm.maxModelLen }}
{{- end }}
{{- if gt (int $e.vllm.tensorParallelSize) 1 }}
- --tensor-parallel-size={{ $e.vllm.tensorParallelSize }}
{{- end }}
{{- if not (int $e.vllm.cpuKvCacheGib) }}
- --gpu-memory-utilization={{ $e.vllm.gpuMemoryUtilization }}
{{- end }}
{{- if or $e.vllm.enforceEager (int $e.vllm.cpuKvCacheGib) }}
- --enforce-eager
{{- end }}
- --shutdown-timeout={{ $e.drainSeconds }}
{{- with .root.Values.tracing }}
{{- if .enabled }}
- --otlp-traces-endpoint={{ .endpoint | trimSuffix "/" }}{{ if ne .protocol "grpc" }}/v1/traces{{ end }}
{{- end }}
{{- end }}
{{- with $e.vllm.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "searchrl.env.vllm" -}}
- {name: VLLM_NO_USAGE_STATS, value: "1"}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- if int .svc.vllm.cpuKvCacheGib }}
- {name: VLLM_CPU_KVCACHE_SPACE, value: {{ .svc.vllm.cpuKvCacheGib | quote }}}
{{- /* Counting logprobs is compiled even in eager mode, and stops vLLM if there is no compiler. */}}
- {name: TORCHDYNAMO_DISABLE, value: "1"}
{{- end }}
{{- if .root.Values.tracing.enabled }}
- {name: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, value: {{ .root.Values.tracing.protocol | quote }}}
{{- end }}
{{- with .svc.apiKey }}
{{- if .existingSecret }}
- name: VLLM_API_KEY
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "searchrl.env.policyServer" -}}
- {name: POLICY_SERVER_CONFIG, value: /etc/searchrl/config.yaml}
{{- end }}

{{- define "searchrl.config.policyServer" -}}
{{- $config := dict "model" (include "searchrl.modelFolder" (dict "uri" .svc.model)) "name" .svc.servedName "slots" .svc.policyServer.slots "threads" .svc.policyServer.threads }}
{{- include "searchrl.configFile" (merge (dict "computed" $config "own" dict "httpPort" 8000) .) }}
{{- end }}
