{{/* Allowed connections, in one table: egress of the client and ingress of the server both come from it. */}}

{{- define "searchrl.edgeTable" -}}
- {from: generator, to: retriever, ports: [9090]}
- {from: generator, to: engine-generator, ports: [8000]}
- {from: generator, to: engine-judge, ports: [8000]}
- {from: generator, to: engine-searcher, ports: [8000]}
- {from: evaluator, to: generator, ports: [9090]}
- {from: evaluator, to: retriever, ports: [9090]}
- {from: retriever, to: redis, ports: [6379]}
- {from: trainer, to: retriever, ports: [8080, 9090]}
- {from: trainer, to: generator, ports: [8080, 9090]}
- {from: trainer, to: engine-generator, ports: [8000]}
- {from: trainer, to: engine-judge, ports: [8000]}
- {from: trainer, to: engine-searcher, ports: [8000]}
- {from: trainer, to: engine-rollout, ports: [8000]}
- {from: trainer, to: trainer, ports: []}
- {from: jobs, to: retriever, ports: [8080, 9090]}
- {from: jobs, to: generator, ports: [8080, 9090]}
- {from: jobs, to: evaluator, ports: [8080, 9090]}
- {from: jobs, to: trainer, ports: [8080, 8265, 9090]}
{{- end }}

{{/* Components that are not jobs. Everything else with the release's labels is a job: job-index, job-evaluate, job-test ... */}}
{{- define "searchrl.longRunning" -}}
[retriever, generator, evaluator, trainer, engine-generator, engine-judge, engine-searcher, engine-rollout, redis]
{{- end }}

{{/* Selector of a component's pods. Context: list of root, component. */}}
{{- define "searchrl.podsOf" -}}
{{- $root := index . 0 -}}
matchLabels:
  app.kubernetes.io/name: searchrl
  app.kubernetes.io/instance: {{ $root.Release.Name }}
  {{- if ne (index . 1) "jobs" }}
  app.kubernetes.io/component: {{ index . 1 }}
  {{- else }}
matchExpressions:
  - {key: app.kubernetes.io/component, operator: NotIn, values: {{ include "searchrl.longRunning" . }}}
  {{- end }}
{{- end }}

{{- define "searchrl.portList" -}}
{{- range . }}
- {port: {{ . }}, protocol: TCP}
{{- end }}
{{- end }}

{{/* Components of this release that need a policy, space separated. */}}
{{- define "searchrl.networkComponents" -}}
trainer jobs
{{- range $name := list "retriever" "generator" "evaluator" }}
{{- if (index $.Values $name).enabled }} {{ $name }}{{ end }}
{{- end }}
{{- range include "searchrl.engineRoles" . | trim | splitList " " | compact }} engine-{{ . }}{{ end }}
{{- if eq .Values.redis.mode "embedded" }} redis{{ end }}
{{- end }}

{{/* Rules for peers outside the table. Context: list of root, component. */}}
{{- define "searchrl.extraIngress" -}}
{{- $root := index . 0 }}
{{- $component := index . 1 }}
{{- $np := $root.Values.networkPolicy }}
{{- /* The engines of a training run serve their metrics at a port of their own. */}}
{{- $http := and (hasPrefix "engine-" $component) (ne $component "engine-rollout") | ternary 8000 8080 }}
{{- if eq $component "generator" }}
- ports: {{- include "searchrl.portList" (list 8080 9090) | nindent 4 }}
  {{- with $np.generatorFrom }}
  from: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- if and (eq $component "retriever") $np.retrieverFrom }}
- ports: {{- include "searchrl.portList" (list 8080 9090) | nindent 4 }}
  from: {{- toYaml $np.retrieverFrom | nindent 4 }}
{{- end }}
{{- if and (eq $component "evaluator") $np.evaluatorFrom }}
- ports: {{- include "searchrl.portList" (list 8080 9090) | nindent 4 }}
  from: {{- toYaml $np.evaluatorFrom | nindent 4 }}
{{- end }}
{{- if eq $component "trainer" }}
- ports: [{port: 8265, protocol: TCP}]
  from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ $np.operatorNamespace }}}}
{{- end }}
{{- $monitoring := $root.Values.monitoring }}
{{- if and (or $monitoring.podMonitors.enabled $monitoring.annotations) (not (has $component (list "jobs" "redis"))) }}
- ports: [{port: {{ $http }}, protocol: TCP}]
  from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ $np.monitoringNamespace }}}}
{{- end }}
{{- end }}

{{- define "searchrl.extraEgress" -}}
{{- $root := index . 0 }}
{{- $component := index . 1 }}
{{- $ports := list }}
{{- if eq $component "generator" }}
{{- range $engine := $root.Values.engines }}
{{- if eq $engine.kind "url" }}
{{- $ports = concat $ports ($engine.url.egressPorts | default (list (include "searchrl.urlPort" $engine.url.baseUrl | int))) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (has $component (list "generator" "evaluator")) (not $root.Values.retriever.enabled) $root.Values.retriever.externalTarget }}
{{- $ports = append $ports (splitList ":" $root.Values.retriever.externalTarget | last | int) }}
{{- end }}
{{- if and (eq $component "retriever") (eq $root.Values.redis.mode "external") }}
{{- $ports = append $ports (int $root.Values.redis.external.port) }}
{{- end }}
{{- if has $component (list "jobs" "trainer") }}
{{- if $root.Values.storage.s3Endpoint }}
{{- $ports = append $ports (include "searchrl.urlPort" $root.Values.storage.s3Endpoint | int) }}
{{- end }}
{{- if or $root.Values.storage.credentialsSecret (include "searchrl.fetchList" $root | fromJson).items }}
{{- $ports = append $ports 443 }}
{{- end }}
{{- end }}
{{- with $ports | uniq }}
- ports: {{- include "searchrl.portList" . | nindent 4 }}
{{- end }}
{{- if and (eq $component "jobs") $root.Values.networkPolicy.identityAddresses }}
- ports: {{- include "searchrl.portList" (list 80 988) | nindent 4 }}
  to:
    {{- range $root.Values.networkPolicy.identityAddresses }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
{{- end }}
{{- end }}

{{- define "searchrl.urlPort" -}}
{{- $url := urlParse . }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" }}
{{- $port | default (eq $url.scheme "https" | ternary "443" "80") }}
{{- end }}
