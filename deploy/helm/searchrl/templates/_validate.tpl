{{/* Rules that a schema cannot express: each names the key, its value and what to write instead. */}}

{{- define "searchrl.validate" -}}
{{- if gt (len (include "searchrl.fullname" .)) 40 }}
{{- include "searchrl.fail" (list "the release's name" (include "searchrl.fullname" .) "at most 40 characters, or set fullnameOverride") }}
{{- end }}
{{- include "searchrl.validateSecrets" . }}
{{- include "searchrl.validateStorage" . }}
{{- range $role, $engine := .Values.engines }}
{{- include "searchrl.validateEngine" (dict "root" $ "key" (printf "engines.%s" $role) "engine" $engine "role" $role) }}
{{- end }}
{{- include "searchrl.validateServices" . }}
{{- end }}

{{- define "searchrl.validateSecrets" -}}
{{- with .Values }}
{{- if and (eq .auth.mode "secret") (not .auth.existingSecret) }}
{{- include "searchrl.fail" (list "auth.existingSecret" "" "the name of a Secret with the keys 'keys' and 'client-key' (kubectl create secret generic searchrl-keys --from-file=keys=keys.yaml --from-literal=client-key=KEY), or auth.mode=off to let everybody in") }}
{{- end }}
{{- if and (eq .auth.mode "dev") (lt (len .auth.dev.key) 16) }}
{{- include "searchrl.fail" (list "auth.dev.key" (printf "%d characters long" (len .auth.dev.key)) "at least 16 characters, or auth.mode=secret") }}
{{- end }}
{{- if and .tls.enabled (not .tls.existingSecret) }}
{{- include "searchrl.fail" (list "tls.existingSecret" "" "the name of a Secret with tls.crt, tls.key and ca.crt, or tls.enabled=false") }}
{{- end }}
{{- if and (eq .redis.mode "external") (not .redis.external.existingSecret) }}
{{- include "searchrl.fail" (list "redis.external.existingSecret" "" "the name of a Secret with the URL under redis.external.key, or redis.mode=embedded or disabled") }}
{{- end }}
{{- if and .tracing.enabled (not .tracing.endpoint) }}
{{- include "searchrl.fail" (list "tracing.endpoint" "" "the collector's OTLP address such as http://otel-collector.monitoring:4317, or tracing.enabled=false") }}
{{- end }}
{{- end }}
{{- end }}

{{- define "searchrl.validateStorage" -}}
{{- if eq .Values.storage.accessMode "ReadWriteOnce" }}
{{- $services := dict "retriever" .Values.retriever "generator" .Values.generator "engines.generator" .Values.engines.generator "engines.judge" .Values.engines.judge "engines.searcher" .Values.engines.searcher }}
{{- range $key, $values := $services }}
{{- $svc := mergeOverwrite (deepCopy $.Values.workload) $values }}
{{- $replicas := eq $svc.autoscaling.kind "none" | ternary $svc.replicas $svc.autoscaling.maxReplicas }}
{{- if gt (int $replicas) 1 }}
{{- $name := eq $svc.autoscaling.kind "none" | ternary "replicas" "autoscaling.maxReplicas" }}
{{- include "searchrl.fail" (list (printf "%s.%s" $key $name) $replicas "1, because storage.accessMode ReadWriteOnce ties /data to one node, or storage.accessMode=ReadWriteMany with a class that offers it") }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "searchrl.validateEngine" -}}
{{- $e := .engine }}
{{- $own := has $e.kind (list "vllm" "policyServer") }}
{{- if and (or $own (and (eq .role "searcher") (ne $e.kind "none"))) (not $e.model) }}
{{- include "searchrl.fail" (list (printf "%s.model" .key) "" (printf "where the model lies with kind %s: /data/models/NAME, pvc://CLAIM/PATH, hf://ORG/NAME, s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH or https://..." $e.kind)) }}
{{- end }}
{{- if $e.model }}
{{- if not (regexMatch "^(/|file:///|pvc://[^/]+|hf://[^/]+/|(s3|gs|az)://[^/]+/|https://)" $e.model) }}
{{- include "searchrl.fail" (list (printf "%s.model" .key) $e.model "an absolute folder such as /data/models/NAME, or a URI with pvc://, hf://, s3://, gs://, az:// or https://") }}
{{- end }}
{{- end }}
{{- if and (eq $e.kind "url") (not $e.url.baseUrl) }}
{{- include "searchrl.fail" (list (printf "%s.url.baseUrl" .key) "" (printf "the server's address such as http://llm.models:8000, or another %s.kind" .key)) }}
{{- end }}
{{- if and (eq $e.kind "url") (not $e.url.model) }}
{{- include "searchrl.fail" (list (printf "%s.url.model" .key) "" "the model's name at that server") }}
{{- end }}
{{- if eq $e.kind "vllm" }}
{{- $svc := mergeOverwrite (deepCopy .root.Values.workload) $e }}
{{- $profile := include "searchrl.gpuProfile" (dict "root" .root "svc" $svc "key" .key) | fromJson }}
{{- $parallel := int $e.vllm.tensorParallelSize }}
{{- $count := int $svc.gpu.count }}
{{- if and (gt $count 0) (ne $count $parallel) }}
{{- include "searchrl.fail" (list (printf "%s.vllm.tensorParallelSize" .key) $parallel (printf "%d, as %s.gpu.count" $count .key)) }}
{{- end }}
{{- if and (eq $count 0) (gt $parallel 1) }}
{{- include "searchrl.fail" (list (printf "%s.vllm.tensorParallelSize" .key) $parallel (printf "1 on CPUs, or a %s.gpu.profile with gpu.count %d" .key $parallel)) }}
{{- end }}
{{- if and (contains "/mig-" ($profile.resourceName | default "")) (gt $parallel 1) }}
{{- include "searchrl.fail" (list (printf "%s.vllm.tensorParallelSize" .key) $parallel "1: slices of a GPU cannot work together; choose a larger slice or the profile full") }}
{{- end }}
{{- $least := gt $count 0 | ternary 8 (add (int $e.vllm.cpuKvCacheGib) 1) }}
{{- $limit := dig "limits" "memory" "" $svc.resources | toString }}
{{- if and $limit (lt (include "searchrl.mebibytes" $limit | int) (mul $least 1024 | int)) }}
{{- include "searchrl.fail" (list (printf "%s.resources.limits.memory" .key) $limit (printf "at least %dGi for kind vllm: a model passes through the memory of the node on its way to the GPU (on CPUs: the cache and the weights); about 1.5 times its weights" (int $least))) }}
{{- end }}
{{- if and (eq $count 0) (eq (int $e.vllm.cpuKvCacheGib) 0) }}
{{- include "searchrl.fail" (list (printf "%s.vllm.cpuKvCacheGib" .key) 0 (printf "the GiB of KV cache on CPUs, or a %s.gpu.profile such as full with gpu.count=1" .key)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* A quantity of memory in MiB, rounded down. */}}
{{- define "searchrl.mebibytes" -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" . | float64 -}}
{{- $unit := regexReplaceAll "^[0-9.]+" . "" -}}
{{- $bytes := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 -}}
{{- if hasKey $bytes $unit }}{{ divf (mulf $number (index $bytes $unit)) 1048576.0 | floor | int64 }}{{ else }}0{{ end -}}
{{- end }}

{{/* Numbers that every service has. */}}
{{- define "searchrl.validateWorkload" -}}
{{- $svc := mergeOverwrite (deepCopy .root.Values.workload) .values }}
{{- $auto := $svc.autoscaling }}
{{- if and (ne $auto.kind "none") (lt (int $auto.maxReplicas) (int $auto.minReplicas)) }}
{{- include "searchrl.fail" (list (printf "%s.autoscaling.maxReplicas" .key) $auto.maxReplicas (printf "at least %v, as autoscaling.minReplicas" $auto.minReplicas)) }}
{{- end }}
{{- if and $svc.pdb.enabled (regexMatch "^0+%?$" (toString $svc.pdb.maxUnavailable)) }}
{{- include "searchrl.fail" (list (printf "%s.pdb.maxUnavailable" .key) $svc.pdb.maxUnavailable "at least 1 or 1%, or nodes can never be drained") }}
{{- end }}
{{- end }}

{{- define "searchrl.validateServices" -}}
{{- range $name := list "retriever" "generator" "evaluator" }}
{{- include "searchrl.validateWorkload" (dict "root" $ "key" $name "values" (index $.Values $name)) }}
{{- end }}
{{- range $role, $engine := .Values.engines }}
{{- include "searchrl.validateWorkload" (dict "root" $ "key" (printf "engines.%s" $role) "values" $engine) }}
{{- end }}
{{- with .Values }}
{{- if and (eq .engines.searcher.kind "none") .generator.config.searcher }}
{{- include "searchrl.fail" (list "generator.config.searcher" "set without a searcher" "an engines.searcher.kind, or leave generator.config.searcher out") }}
{{- end }}
{{- $evaluator := mergeOverwrite (deepCopy .workload) .evaluator }}
{{- if and .evaluator.enabled (or (ne (int $evaluator.replicas) 1) (ne $evaluator.autoscaling.kind "none")) }}
{{- include "searchrl.fail" (list "evaluator.replicas" $evaluator.replicas "1 without autoscaling: the result file belongs to one process") }}
{{- end }}
{{- if and (ne .engines.searcher.kind "none") (not .retriever.enabled) (not .retriever.externalTarget) }}
{{- include "searchrl.fail" (list "engines.searcher.kind" .engines.searcher.kind "none, or retriever.enabled=true, or retriever.externalTarget=HOST:PORT: a searcher needs a retriever") }}
{{- end }}
{{- if and .ingress.enabled (not .ingress.host) }}
{{- include "searchrl.fail" (list "ingress.host" "" "the host name of the generator") }}
{{- end }}
{{- if and .gateway.enabled (not .gateway.parentRefs) }}
{{- include "searchrl.fail" (list "gateway.parentRefs" "an empty list" "the gateways that take the routes: [{name: NAME, namespace: NAMESPACE}]") }}
{{- end }}
{{- end }}
{{- end }}
