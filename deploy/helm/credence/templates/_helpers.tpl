{{- define "credence.labels" -}}
app.kubernetes.io/name: credence
app.kubernetes.io/part-of: credence
{{- end -}}

{{- define "credence.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* A container that can do nothing but what its process needs no rights for. */}}
{{- define "credence.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Ports that a network policy lets through. */}}
{{- define "credence.ports" -}}
[{{ range $i, $port := . }}{{ if $i }}, {{ end }}{port: {{ $port }}}{{ end }}]
{{- end -}}
