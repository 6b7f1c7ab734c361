{{/* Parts that every pod of the chart has: security, scheduling, volumes. */}}

{{- define "searchrl.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.security }}
{{- if not (kindIs "invalid" .runAsUser) }}
runAsUser: {{ .runAsUser }}
{{- end }}
{{- if not (kindIs "invalid" .runAsGroup) }}
runAsGroup: {{ .runAsGroup }}
{{- end }}
{{- if not (kindIs "invalid" .fsGroup) }}
fsGroup: {{ .fsGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "searchrl.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/*
Who the process is. A user id that the platform chose has no entry in /etc/passwd: programs that ask for their user's name
(torch's cache folder, for one) find it here instead of failing.
*/}}
{{- define "searchrl.userEnv" -}}
- {name: HOME, value: /tmp/home}
- {name: USER, value: searchrl}
- {name: LOGNAME, value: searchrl}
{{- end }}

{{/* First lines of every pod spec. Context: root. */}}
{{- define "searchrl.podBase" -}}
serviceAccountName: {{ include "searchrl.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{- include "searchrl.podSecurityContext" . | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Node selection of a service. A claim that one node mounts keeps the release together on it. Context: root, svc, component, key. */}}
{{- define "searchrl.scheduling" -}}
{{- $profile := include "searchrl.gpuProfile" . | fromJson }}
{{- if and .usesData (eq .root.Values.storage.accessMode "ReadWriteOnce") }}
{{- $profile = merge (include "searchrl.devicesOfRelease" .root | fromJson) $profile }}
{{- end }}
{{- with merge (deepCopy .svc.nodeSelector) ($profile.nodeSelector | default dict) }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat ($profile.tolerations | default list) (.svc.tolerations | default list) | uniq }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $profile.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- $affinity := deepCopy .svc.affinity }}
{{- if and .usesData (eq .root.Values.storage.accessMode "ReadWriteOnce") (not $affinity.podAffinity) }}
{{- $_ := set $affinity "podAffinity" (include "searchrl.sameNode" . | fromYaml) }}
{{- end }}
{{- with $affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .svc.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .svc.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: {{ $.svc.topologySpread.whenUnsatisfiable }}
    labelSelector: {matchLabels: {{ include "searchrl.selectorLabels" $ | fromYaml | toJson }}}
    {{- if not $.isStateful }}
    matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Node of the release's devices: with storage of one node every pod must run there. */}}
{{- define "searchrl.devicesOfRelease" -}}
{{- $selector := dict }}
{{- $tolerations := list }}
{{- $services := list (dict "key" "retriever" "values" .Values.retriever) }}
{{- range $role := include "searchrl.engineRoles" . | trim | splitList " " | compact }}
{{- $services = append $services (dict "key" (printf "engines.%s" $role) "values" (index $.Values.engines $role)) }}
{{- end }}
{{- range $services }}
{{- $svc := mergeOverwrite (deepCopy $.Values.workload) .values }}
{{- $profile := include "searchrl.gpuProfile" (dict "root" $ "svc" $svc "key" .key) | fromJson }}
{{- $selector = merge $selector ($profile.nodeSelector | default dict) }}
{{- $tolerations = concat $tolerations ($profile.tolerations | default list) }}
{{- end }}
{{- dict "nodeSelector" $selector "tolerations" ($tolerations | uniq) | toJson }}
{{- end }}

{{/* With storage of one node the first pod with devices chooses the node: the others could choose one with too few devices. */}}
{{- define "searchrl.anchor" -}}
{{- $found := "" }}
{{- $services := dict "engine-generator" .Values.engines.generator "engine-judge" .Values.engines.judge "engine-searcher" .Values.engines.searcher "retriever" .Values.retriever }}
{{- range $component := list "engine-generator" "engine-judge" "engine-searcher" "retriever" }}
{{- $values := index $services $component }}
{{- $isThere := or (has $values.kind (list "vllm" "policyServer")) $values.enabled }}
{{- if and $isThere (not $found) (include "searchrl.isGpu" (dict "svc" (mergeOverwrite (deepCopy $.Values.workload) $values))) }}
{{- $found = $component }}
{{- end }}
{{- end }}
{{- $found }}
{{- end }}

{{- define "searchrl.sameNode" -}}
{{- $anchor := include "searchrl.anchor" .root }}
requiredDuringSchedulingIgnoredDuringExecution:
  - topologyKey: kubernetes.io/hostname
    labelSelector:
      matchLabels:
        app.kubernetes.io/name: searchrl
        app.kubernetes.io/instance: {{ .root.Release.Name }}
        searchrl.io/data: {{ include "searchrl.claimLabel" .root }}
        {{- if and $anchor (ne $anchor .component) }}
        app.kubernetes.io/component: {{ $anchor }}
        {{- end }}
{{- end }}

{{/* Name of the volume of a claim: claims may have dots and 253 characters, volumes may not. */}}
{{- define "searchrl.claimVolume" -}}
{{- $plain := printf "claim-%s" . -}}
{{- if or (contains "." .) (gt (len $plain) 63) -}}
{{- printf "%s-%s" (replace "." "-" $plain | trunc 52 | trimSuffix "-") (sha256sum . | trunc 8) -}}
{{- else -}}
{{- $plain -}}
{{- end -}}
{{- end }}

{{/* Volumes of a service. Context: root, component, svc, usesData, usesKeys, config (yes or nothing), claims (list of model claims). */}}
{{- define "searchrl.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 2Gi}
- name: home
  emptyDir: {sizeLimit: {{ .homeSize | default "1Gi" }}}
{{- if .usesConfig }}
- name: config
  configMap: {name: {{ include "searchrl.name" . }}}
{{- end }}
{{- if and .usesKeys (ne .root.Values.auth.mode "off") }}
- name: keys
  secret:
    secretName: {{ include "searchrl.authSecret" .root }}
    items: [{key: keys, path: keys}]
    optional: true # without the file the service ends with a sentence; without the volume the pod would wait in silence
    defaultMode: 0440
{{- end }}
{{- if .usesTls }}
- name: tls
  secret: {secretName: {{ .root.Values.tls.existingSecret }}, defaultMode: 0440}
{{- end }}
{{- if .usesData }}
- name: data
  persistentVolumeClaim: {claimName: {{ include "searchrl.claimName" .root }}}
{{- end }}
{{- range $claim := .claims }}
- name: {{ include "searchrl.claimVolume" $claim }}
  persistentVolumeClaim: {claimName: {{ $claim }}, readOnly: true}
{{- end }}
{{- if or .waitFor .scripts }}
- name: scripts
  configMap: {name: {{ include "searchrl.fullname" .root }}-scripts}
{{- end }}
{{- if .usesSharedMemory }}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: 8Gi}
{{- end }}
{{- with .svc.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "searchrl.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /tmp/home}
{{- if .scripts }}
- {name: scripts, mountPath: /etc/searchrl/scripts, readOnly: true}
{{- end }}
{{- if .usesConfig }}
- {name: config, mountPath: /etc/searchrl/config.yaml, subPath: config.yaml, readOnly: true}
{{- end }}
{{- if and .usesKeys (ne .root.Values.auth.mode "off") }}
- {name: keys, mountPath: /etc/searchrl/keys, readOnly: true}
{{- end }}
{{- if .usesTls }}
- {name: tls, mountPath: /etc/searchrl/tls, readOnly: true}
{{- end }}
{{- if .usesData }}
- {name: data, mountPath: /data, readOnly: {{ ne .usesData "rw" }}}
{{- end }}
{{- range .writableData }}
- {name: data, mountPath: /data/{{ . }}, subPath: {{ . }}}
{{- end }}
{{- range $claim := .claims }}
- {name: {{ include "searchrl.claimVolume" $claim }}, mountPath: /mnt/{{ $claim }}, readOnly: true}
{{- end }}
{{- if .usesSharedMemory }}
- {name: shared-memory, mountPath: /dev/shm}
{{- end }}
{{- with .svc.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
