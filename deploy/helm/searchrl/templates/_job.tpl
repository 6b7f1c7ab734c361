{{/*
A job of the release. Its name contains a hash of its content, because an existing job cannot be changed.
Context: root, component, image, key, command, args, env (YAML), deadline, resources, usesCredentials.
*/}}

{{- define "searchrl.job" -}}
{{- $spec := include "searchrl.jobSpec" . -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "searchrl.name" . }}-{{ sha256sum $spec | trunc 8 }}
  labels: {{- include "searchrl.labels" . | nindent 4 }}
spec:
  {{- $spec | nindent 2 }}
{{- end }}

{{- define "searchrl.jobSpec" -}}
{{- $svc := mergeOverwrite (deepCopy .root.Values.workload) (dict "resources" .resources) }}
{{- $context := merge (dict "svc" $svc "key" .key "usesData" "rw") . }}
{{- $_ := set $svc "topologySpread" (dict "enabled" false) }}
backoffLimit: 4
activeDeadlineSeconds: {{ .deadline }}
podFailurePolicy:
  rules:
    - action: Ignore
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
    - action: FailJob
      onExitCodes: {containerName: {{ .component }}, operator: In, values: [2]}
template:
  metadata:
    labels:
      {{- include "searchrl.podLabels" . | nindent 6 }}
      searchrl.io/data: {{ include "searchrl.claimLabel" .root }}
      {{- with $svc.podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  spec:
    restartPolicy: Never
    {{- include "searchrl.podBase" .root | nindent 4 }}
    {{- include "searchrl.scheduling" $context | trim | nindent 4 }}
    containers:
      - name: {{ .component }}
        image: {{ include "searchrl.image" (dict "root" .root "image" .image "key" .key) }}
        imagePullPolicy: {{ .root.Values.image.pullPolicy }}
        command: {{ toJson .command }}
        {{- with .args }}
        args: {{- toYaml . | nindent 10 }}
        {{- end }}
        env:
          {{- include "searchrl.userEnv" . | nindent 10 }}
          {{- with .env }}
          {{- . | nindent 10 }}
          {{- end }}
        {{- if and .usesCredentials .root.Values.storage.credentialsSecret }}
        envFrom:
          - secretRef: {name: {{ .root.Values.storage.credentialsSecret }}}
        {{- end }}
        resources: {{- toYaml .resources | nindent 10 }}
        securityContext: {{- include "searchrl.containerSecurityContext" . | nindent 10 }}
        terminationMessagePolicy: FallbackToLogsOnError
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
          - {name: home, mountPath: /tmp/home}
          - {name: scripts, mountPath: /etc/searchrl/scripts, readOnly: true}
          - {name: data, mountPath: /data}
    volumes:
      - name: tmp
        emptyDir: {sizeLimit: 10Gi}
      - name: home
        emptyDir: {sizeLimit: 1Gi}
      - name: scripts
        configMap: {name: {{ include "searchrl.fullname" .root }}-scripts}
      - name: data
        persistentVolumeClaim: {claimName: {{ include "searchrl.claimName" .root }}}
{{- end }}
