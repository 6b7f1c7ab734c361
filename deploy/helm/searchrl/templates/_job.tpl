{{/* A job of the release. Context: root, component, suffix (hash of what it does), image, key, command, args, env (YAML), deadline, resources, usesCredentials. */}}

{{- define "searchrl.job" -}}
{{- $svc := mergeOverwrite (deepCopy .root.Values.workload) (dict "resources" .resources) }}
{{- $context := merge (dict "svc" $svc "key" .key "usesData" "rw") . }}
{{- $_ := set $svc "topologySpread" (dict "enabled" false) }}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "searchrl.name" . }}-{{ .suffix }}
  labels: {{- include "searchrl.labels" . | nindent 4 }}
spec:
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
        {{- include "searchrl.labels" . | nindent 8 }}
        searchrl.io/data: {{ include "searchrl.claimName" .root }}
    spec:
      restartPolicy: Never
      {{- include "searchrl.podBase" .root | nindent 6 }}
      {{- include "searchrl.scheduling" $context | trim | nindent 6 }}
      containers:
        - name: {{ .component }}
          image: {{ include "searchrl.image" (dict "root" .root "image" .image "key" .key) }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          command: {{ toJson .command }}
          {{- with .args }}
          args: {{- toYaml . | nindent 12 }}
          {{- end }}
          env:
            - {name: HOME, value: /tmp/home}
            {{- with .env }}
            {{- . | nindent 12 }}
            {{- end }}
          {{- if and .usesCredentials .root.Values.storage.credentialsSecret }}
          envFrom:
            - secretRef: {name: {{ .root.Values.storage.credentialsSecret }}}
          {{- end }}
          resources: {{- toYaml .resources | nindent 12 }}
          securityContext: {{- include "searchrl.containerSecurityContext" . | nindent 12 }}
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
