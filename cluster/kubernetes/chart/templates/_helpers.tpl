{{- define "dal.labels" -}}
app.kubernetes.io/name: dal
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Pods of no rights: not root, nothing to write but /tmp and volumes, no token of the API server. */}}
{{- define "dal.pod" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "dal.container" -}}
image: {{ .Values.image | quote }}
imagePullPolicy: IfNotPresent
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "dal.credentials" -}}
{{- with .Values.credentials }}
envFrom:
  {{- range . }}
  - secretRef:
      name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Memory is asked for as it is limited: what is promised twice is taken from the one that needs it. */}}
{{- define "dal.resources" -}}
resources:
  requests:
    cpu: {{ .cpu | quote }}
    memory: {{ .memory | quote }}
  limits:
    memory: {{ .memory | quote }}
{{- end }}

{{- define "dal.scheduler" -}}
{{ ternary "tls" "tcp" (not (empty .Values.tlsSecret)) }}://{{ .Release.Name }}-scheduler:8786
{{- end }}

{{/* Dask's settings for one role: scheduler, worker or client. */}}
{{- define "dal.tls.env" -}}
- name: DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION
  value: "true"
- name: DASK_DISTRIBUTED__COMM__TLS__CA_FILE
  value: /certificates/ca.crt
- name: DASK_DISTRIBUTED__COMM__TLS__{{ . }}__CERT
  value: /certificates/tls.crt
- name: DASK_DISTRIBUTED__COMM__TLS__{{ . }}__KEY
  value: /certificates/tls.key
{{- end }}

{{- define "dal.tls.mount" -}}
{{- if .Values.tlsSecret -}}
- name: certificates
  mountPath: /certificates
  readOnly: true
{{- end }}
{{- end }}

{{/* Readable by the group of the pod, fsGroup, and by nobody else. */}}
{{- define "dal.tls.volume" -}}
{{- with .Values.tlsSecret -}}
- name: certificates
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}
