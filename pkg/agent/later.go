package agent

import "github.com/credence-id/credence/pkg/config"

// Why a built-in plugin of SPIRE is refused, by what it is for.
const (
	laterNodes     = `this version attests by join token (join_token), by a certificate the node has (x509pop) or by the token of its Kubernetes pod (k8s_psat); use one of these`
	laterWorkloads = `this version recognises workloads by their Unix process (unix) or their pod (k8s); use one of these`
	laterWindows   = `Windows is not supported; use WorkloadAttestor "unix" on Linux`
	laterStores    = `this version delivers SVIDs over the Workload API only; remove the section`
)

const sigstoreKeys = ` sigstore{allowed_identities{*} skipped_images rekor_url ignore_sct ignore_tlog ignore_attestations
	registry_credentials{*{username password}}}`

// later are SPIRE's built-in plugins that this version does not have. One that
// it gets moves to the maps in assemble.go.
var later = []config.Later{
	{Type: "NodeAttestor", Name: "aws_iid", Reason: laterNodes, Keys: `ec2_metadata_endpoint`},
	{Type: "NodeAttestor", Name: "azure_imds", Reason: laterNodes, Keys: `tenant_domain`},
	{Type: "NodeAttestor", Name: "azure_msi", Reason: laterNodes, Keys: `resource_id`},
	{Type: "NodeAttestor", Name: "gcp_iit", Reason: laterNodes, Keys: `identity_token_host service_account`},
	{Type: "NodeAttestor", Name: "http_challenge", Reason: laterNodes, Keys: `hostname agentname port advertised_port`},
	{Type: "NodeAttestor", Name: "sshpop", Reason: laterNodes, Keys: `host_key_path host_cert_path`},
	{Type: "NodeAttestor", Name: "tpm_devid", Reason: laterNodes,
		Keys: `devid_priv_path devid_pub_path devid_cert_path devid_password owner_hierarchy_password
			endorsement_hierarchy_password tpm_device_path`},

	{Type: "SVIDStore", Name: "aws_secretsmanager", Reason: laterStores, Keys: `access_key_id secret_access_key region`},
	{Type: "SVIDStore", Name: "gcp_secretmanager", Reason: laterStores, Keys: `service_account_file`},

	{Type: "WorkloadAttestor", Name: "docker", Reason: laterWorkloads,
		Keys: `docker_socket_path docker_host docker_version container_id_cgroup_matchers use_new_container_locator
			verbose_container_locator_logs podman_socket_path podman_socket_path_template` + sigstoreKeys},
	{Type: "WorkloadAttestor", Name: "slurm", Reason: laterWorkloads},
	{Type: "WorkloadAttestor", Name: "systemd", Reason: laterWorkloads},
	{Type: "WorkloadAttestor", Name: "windows", Reason: laterWindows,
		Keys: `discover_workload_path workload_size_limit disable_group_name_selectors`},
}
