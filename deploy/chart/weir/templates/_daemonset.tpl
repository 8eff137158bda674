{{- /*
One DaemonSet. Takes a dict: root, name, component, account, l4, l7 (what its agents serve) and
nodes (the node label's operator and value; none: every Linux node). The reasons for each field are
in deploy/base/daemonset.yaml, which this equals (`cargo xtask test api`).
*/ -}}
{{- define "weir.daemonset" -}}
{{- $values := .root.Values -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    app.kubernetes.io/name: weir
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: weir
      app.kubernetes.io/component: {{ .component }}
  updateStrategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: 1
      maxUnavailable: 0
  template:
    metadata:
      labels:
        app.kubernetes.io/name: weir
        app.kubernetes.io/component: {{ .component }}
      annotations:
        kubectl.kubernetes.io/default-container: weir
    spec:
      serviceAccountName: {{ .account }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      hostNetwork: true
      dnsPolicy: {{ if .l4 }}Default{{ else }}ClusterFirstWithHostNet{{ end }}
      priorityClassName: system-node-critical
      tolerations:
        - operator: Exists
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              - matchExpressions:
                  - key: kubernetes.io/os
                    operator: In
                    values: [linux]
                  {{- with .nodes }}
                  - key: weir.dev/l7
                    operator: {{ .operator }}
                    values: [{{ .value | quote }}]
                  {{- end }}
      terminationGracePeriodSeconds: {{ if .l7 }}300{{ else }}30{{ end }}
      securityContext:
        seccompProfile:
          type: RuntimeDefault
      {{- if .l4 }}
      initContainers:
        - name: init-node
          image: {{ $values.image.repository }}:{{ $values.image.tag }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          command: [weir, init-node]
          args:
            - --bpffs=/bpf
            - --cgroup=/cgroup
            - --host-root=/host
          envFrom:
            - configMapRef:
                name: weir
                optional: true
          securityContext:
            privileged: true
            runAsUser: 0
            runAsGroup: 0
            readOnlyRootFilesystem: true
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          volumeMounts:
            - name: bpffs
              mountPath: /bpf
              mountPropagation: Bidirectional
            - name: cgroup
              mountPath: /cgroup
              readOnly: true
            - name: state
              mountPath: /run/weir
            - name: host-etc
              mountPath: /host/etc
              readOnly: true
            - name: host-var-lib
              mountPath: /host/var/lib
              readOnly: true
      {{- end }}
      containers:
        - name: weir
          image: {{ $values.image.repository }}:{{ $values.image.tag }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          command: [weir, run]
          env:
            - name: NODE_NAME
              valueFrom:
                fieldRef:
                  fieldPath: spec.nodeName
            {{- if not .l7 }}
            - name: WEIR_L7
              value: "off"
            {{- end }}
            {{- if .l4 }}
            - name: WEIR_BPFFS
              value: /bpf
            - name: WEIR_CGROUP
              value: /cgroup
            {{- else }}
            - name: WEIR_L4
              value: "off"
            - name: WEIR_HEALTHZ_LISTEN
              value: "[::]:10246"
            {{- if not $values.monitoring }}
            - name: WEIR_METRICS_LISTEN
              value: 127.0.0.1:10247
            {{- end }}
            {{- end }}
            - name: WEIR_ADMIN_SOCKET
              value: /run/weir-admin/admin.sock
            {{- if $values.monitoring }}
            - name: HOST_IP
              valueFrom:
                fieldRef:
                  fieldPath: status.hostIP
            - name: WEIR_METRICS_LISTEN
              value: "[$(HOST_IP)]:10249"
            {{- end }}
            {{- if .l7 }}
            - name: WEIR_DRAIN_DELAY
              value: 20s
            {{- if and .nodes (eq .nodes.operator "In") }}
            - name: WEIR_PUBLISH_NODE_SELECTOR
              value: weir.dev/l7=on
            {{- end }}
            {{- end }}
          envFrom:
            - configMapRef:
                name: weir
                optional: true
          readinessProbe:
            exec:
              command: [weir, ready, --standby-counts]
            periodSeconds: 5
            timeoutSeconds: 5
            failureThreshold: 2
          livenessProbe:
            exec:
              command: [weir, alive]
            initialDelaySeconds: 30
            periodSeconds: 20
            timeoutSeconds: 10
            failureThreshold: 6
          securityContext:
            privileged: {{ $values.privileged }}
            runAsUser: 0
            runAsGroup: 0
            readOnlyRootFilesystem: true
            {{- if not $values.privileged }}
            allowPrivilegeEscalation: false
            capabilities:
              drop: [ALL]
              add:
                {{- if .l4 }}
                - BPF
                - PERFMON
                - NET_ADMIN
                {{- end }}
                {{- if .l7 }}
                - NET_BIND_SERVICE
                - SETUID
                - SETGID
                - SETPCAP
                {{- end }}
            {{- end }}
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          volumeMounts:
            {{- if .l4 }}
            - name: bpffs
              mountPath: /bpf
            - name: cgroup
              mountPath: /cgroup
              readOnly: true
            {{- end }}
            - name: state
              mountPath: /run/weir
            - name: admin
              mountPath: /run/weir-admin
            - name: token
              mountPath: /var/run/secrets/kubernetes.io/serviceaccount
              readOnly: true
      volumes:
        {{- if .l4 }}
        - name: bpffs
          hostPath:
            path: /sys/fs/bpf
            type: Directory
        - name: cgroup
          hostPath:
            path: /sys/fs/cgroup
            type: Directory
        - name: host-etc
          hostPath:
            path: /etc
            type: Directory
        - name: host-var-lib
          hostPath:
            path: /var/lib
            type: Directory
        {{- end }}
        - name: state
          hostPath:
            path: {{ if .l4 }}/run/weir{{ else }}/run/weir-l7{{ end }}
            type: DirectoryOrCreate
        - name: admin
          emptyDir: {}
        - name: token
          projected:
            {{- /* 0400, in the spelling of every YAML. */}}
            defaultMode: 256
            sources:
              - serviceAccountToken:
                  path: token
                  expirationSeconds: 3607
              - configMap:
                  name: kube-root-ca.crt
                  items:
                    - key: ca.crt
                      path: ca.crt
              - downwardAPI:
                  items:
                    - path: namespace
                      fieldRef:
                        apiVersion: v1
                        fieldPath: metadata.namespace
{{- end }}
