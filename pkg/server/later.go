package server

import "github.com/credence-id/credence/pkg/config"

// Why a built-in plugin of SPIRE is refused, by what it is for.
const (
	laterKeys      = `this version has no keys in a cloud or a vault; use KeyManager "disk"`
	laterNodes     = `this version attests nodes by join token (join_token), by a certificate they have (x509pop) or by the token of a Kubernetes pod (k8s_psat); use one of these`
	laterUpstream  = `this version signs its own CA certificate; remove the section, and give the agents the new bundle ('bundle show')`
	laterPublisher = `this version publishes its bundle to Kubernetes only (k8s_configmap); use that, or remove the section and fetch the bundle with 'bundle show' or the bundle API`
	laterNotifier  = `this version notifies Kubernetes only (k8sbundle) of its bundle; use that, or remove the section and fetch the bundle with 'bundle show' or the bundle API`
	laterComposer  = `this version does not let plugins change credentials; remove the section`
)

const vaultKeys = ` vault_addr ca_cert_path insecure_skip_verify namespace
	token_auth{token}
	cert_auth{cert_auth_mount_point cert_auth_role_name client_cert_path client_key_path}
	approle_auth{approle_auth_mount_point approle_id approle_secret_id}
	k8s_auth{k8s_auth_mount_point k8s_auth_role_name token_path}`

// later are SPIRE's built-in plugins that this version does not have. One that
// it gets moves to the maps in assemble.go.
var later = []config.Later{
	{Type: "BundlePublisher", Name: "aws_rolesanywhere_trustanchor", Reason: laterPublisher,
		Keys: `access_key_id secret_access_key region trust_anchor_id`},
	{Type: "BundlePublisher", Name: "aws_s3", Reason: laterPublisher,
		Keys: `access_key_id secret_access_key region bucket object_key format endpoint refresh_hint`},
	{Type: "BundlePublisher", Name: "azure_blob", Reason: laterPublisher,
		Keys: `storage_account_name storage_account_key service_endpoint container_name blob_name format
			tenant_id app_id app_secret refresh_hint`},
	{Type: "BundlePublisher", Name: "gcp_cloudstorage", Reason: laterPublisher,
		Keys: `bucket_name object_name format service_account_file refresh_hint`},

	{Type: "CredentialComposer", Name: "uniqueid", Reason: laterComposer},

	{Type: "KeyManager", Name: "aws_kms", Reason: laterKeys,
		Keys: `access_key_id secret_access_key region key_identifier_file key_identifier_value key_policy_file key_tags{*}
			enable_tag_based_key_discovery`},
	{Type: "KeyManager", Name: "azure_key_vault", Reason: laterKeys,
		Keys: `key_identifier_file key_identifier_value key_vault_uri tenant_id subscription_id app_id app_secret use_msi`},
	{Type: "KeyManager", Name: "gcp_kms", Reason: laterKeys,
		Keys: `key_identifier_file key_identifier_value key_policy_file key_ring service_account_file`},
	{Type: "KeyManager", Name: "hashicorp_vault", Reason: laterKeys,
		Keys: `key_identifier_file key_identifier_value transit_engine_path` + vaultKeys},

	{Type: "NodeAttestor", Name: "aws_iid", Reason: laterNodes,
		Keys: `access_key_id secret_access_key assume_role partition skip_block_device disable_instance_profile_selectors
			account_ids_for_local_validation agent_path_template
			verify_organization{management_account_id assume_org_role management_account_region org_account_map_ttl account_list_file}
			validate_eks_cluster_membership{eks_cluster_names}`},
	{Type: "NodeAttestor", Name: "azure_imds", Reason: laterNodes,
		Keys: `tenants{*{auth_type secret_auth{app_id app_secret} token_auth{token_path app_id} allowed_vm_tags restrict_to_subscriptions}}
			agent_path_template allowed_metadata_domains`},
	{Type: "NodeAttestor", Name: "azure_msi", Reason: laterNodes,
		Keys: `tenants{*{resource_id use_msi subscription_id app_id app_secret}} agent_path_template`},
	{Type: "NodeAttestor", Name: "gcp_iit", Reason: laterNodes,
		Keys: `projectid_allow_list agent_path_template use_instance_metadata allowed_label_keys allowed_metadata_keys
			max_metadata_value_size service_account_file`},
	{Type: "NodeAttestor", Name: "http_challenge", Reason: laterNodes,
		Keys: `allowed_dns_patterns required_port allow_non_root_ports tofu`},
	{Type: "NodeAttestor", Name: "sshpop", Reason: laterNodes,
		Keys: `cert_authorities cert_authorities_path canonical_domain agent_path_template`},
	{Type: "NodeAttestor", Name: "tpm_devid", Reason: laterNodes,
		Keys: `devid_ca_path endorsement_ca_path`},

	{Type: "Notifier", Name: "gcs_bundle", Reason: laterNotifier,
		Keys: `bucket object_path service_account_file`},

	{Type: "UpstreamAuthority", Name: "aws_pca", Reason: laterUpstream,
		Keys: `region endpoint certificate_authority_arn signing_algorithm ca_signing_template_arn assume_role_arn supplemental_bundle_path`},
	{Type: "UpstreamAuthority", Name: "awssecret", Reason: laterUpstream,
		Keys: `region cert_file_arn key_file_arn bundle_file_arn access_key_id secret_access_key secret_token assume_role_arn`},
	{Type: "UpstreamAuthority", Name: "cert-manager", Reason: laterUpstream,
		Keys: `issuer_name issuer_kind issuer_group namespace kube_config_file`},
	{Type: "UpstreamAuthority", Name: "disk", Reason: laterUpstream,
		Keys: `cert_file_path key_file_path bundle_file_path`},
	{Type: "UpstreamAuthority", Name: "ejbca", Reason: laterUpstream,
		Keys: `hostname ca_cert_path client_cert_path client_cert_key_path ca_name end_entity_profile_name certificate_profile_name
			end_entity_name account_binding_id`},
	{Type: "UpstreamAuthority", Name: "gcp_cas", Reason: laterUpstream,
		Keys: `root_cert_spec{project_name region_name ca_pool label_key label_value}`},
	{Type: "UpstreamAuthority", Name: "spire", Reason: laterUpstream,
		Keys: `server_address server_port workload_api_socket experimental{workload_api_named_pipe_name require_pq_kem}`},
	{Type: "UpstreamAuthority", Name: "vault", Reason: laterUpstream,
		Keys: `pki_mount_point` + vaultKeys},
}
