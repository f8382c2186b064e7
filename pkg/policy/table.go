package policy

import (
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"google.golang.org/grpc/health/grpc_health_v1"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
)

// rule says who may call one method.
type rule struct {
	roles  Role
	anyone bool // even without a client certificate
	health bool // anyone, if the policy says so
}

var (
	anyone     = rule{anyone: true}
	local      = rule{roles: Local}
	health     = rule{roles: Local, health: true}
	operator   = rule{roles: Local | Admin}
	agent      = rule{roles: Agent}
	downstream = rule{roles: Downstream}
	// reader is whoever runs the trust domain or serves its workloads.
	reader = rule{roles: Local | Admin | Agent}
)

var table = map[string]rule{
	agentv1.Agent_AttestAgent_FullMethodName:     anyone,
	agentv1.Agent_RenewAgent_FullMethodName:      agent,
	agentv1.Agent_PostStatus_FullMethodName:      agent,
	agentv1.Agent_CountAgents_FullMethodName:     operator,
	agentv1.Agent_ListAgents_FullMethodName:      operator,
	agentv1.Agent_GetAgent_FullMethodName:        operator,
	agentv1.Agent_DeleteAgent_FullMethodName:     operator,
	agentv1.Agent_BanAgent_FullMethodName:        operator,
	agentv1.Agent_CreateJoinToken_FullMethodName: operator,

	entryv1.Entry_GetAuthorizedEntries_FullMethodName:  agent,
	entryv1.Entry_SyncAuthorizedEntries_FullMethodName: agent,
	entryv1.Entry_CountEntries_FullMethodName:          operator,
	entryv1.Entry_ListEntries_FullMethodName:           operator,
	entryv1.Entry_GetEntry_FullMethodName:              operator,
	entryv1.Entry_BatchCreateEntry_FullMethodName:      operator,
	entryv1.Entry_BatchUpdateEntry_FullMethodName:      operator,
	entryv1.Entry_BatchDeleteEntry_FullMethodName:      operator,

	svidv1.SVID_BatchNewX509SVID_FullMethodName:    agent,
	svidv1.SVID_NewJWTSVID_FullMethodName:          agent,
	svidv1.SVID_BatchNewWITSVID_FullMethodName:     agent,
	svidv1.SVID_NewDownstreamX509CA_FullMethodName: downstream,
	svidv1.SVID_MintX509SVID_FullMethodName:        operator,
	svidv1.SVID_MintJWTSVID_FullMethodName:         operator,
	svidv1.SVID_MintWITSVID_FullMethodName:         operator,

	bundlev1.Bundle_GetBundle_FullMethodName:                  anyone,
	bundlev1.Bundle_GetFederatedBundle_FullMethodName:         reader,
	bundlev1.Bundle_PublishJWTAuthority_FullMethodName:        downstream,
	bundlev1.Bundle_PublishWITAuthority_FullMethodName:        downstream,
	bundlev1.Bundle_CountBundles_FullMethodName:               operator,
	bundlev1.Bundle_AppendBundle_FullMethodName:               operator,
	bundlev1.Bundle_ListFederatedBundles_FullMethodName:       operator,
	bundlev1.Bundle_BatchCreateFederatedBundle_FullMethodName: operator,
	bundlev1.Bundle_BatchUpdateFederatedBundle_FullMethodName: operator,
	bundlev1.Bundle_BatchSetFederatedBundle_FullMethodName:    operator,
	bundlev1.Bundle_BatchDeleteFederatedBundle_FullMethodName: operator,

	trustdomainv1.TrustDomain_ListFederationRelationships_FullMethodName:       operator,
	trustdomainv1.TrustDomain_GetFederationRelationship_FullMethodName:         operator,
	trustdomainv1.TrustDomain_BatchCreateFederationRelationship_FullMethodName: operator,
	trustdomainv1.TrustDomain_BatchUpdateFederationRelationship_FullMethodName: operator,
	trustdomainv1.TrustDomain_BatchDeleteFederationRelationship_FullMethodName: operator,
	trustdomainv1.TrustDomain_RefreshBundle_FullMethodName:                     operator,

	localauthorityv1.LocalAuthority_GetX509AuthorityState_FullMethodName:       operator,
	localauthorityv1.LocalAuthority_PrepareX509Authority_FullMethodName:        operator,
	localauthorityv1.LocalAuthority_ActivateX509Authority_FullMethodName:       operator,
	localauthorityv1.LocalAuthority_TaintX509Authority_FullMethodName:          operator,
	localauthorityv1.LocalAuthority_TaintX509UpstreamAuthority_FullMethodName:  operator,
	localauthorityv1.LocalAuthority_RevokeX509Authority_FullMethodName:         operator,
	localauthorityv1.LocalAuthority_RevokeX509UpstreamAuthority_FullMethodName: operator,
	localauthorityv1.LocalAuthority_GetJWTAuthorityState_FullMethodName:        operator,
	localauthorityv1.LocalAuthority_PrepareJWTAuthority_FullMethodName:         operator,
	localauthorityv1.LocalAuthority_ActivateJWTAuthority_FullMethodName:        operator,
	localauthorityv1.LocalAuthority_TaintJWTAuthority_FullMethodName:           operator,
	localauthorityv1.LocalAuthority_RevokeJWTAuthority_FullMethodName:          operator,
	localauthorityv1.LocalAuthority_GetWITAuthorityState_FullMethodName:        operator,
	localauthorityv1.LocalAuthority_PrepareWITAuthority_FullMethodName:         operator,
	localauthorityv1.LocalAuthority_ActivateWITAuthority_FullMethodName:        operator,
	localauthorityv1.LocalAuthority_TaintWITAuthority_FullMethodName:           operator,
	localauthorityv1.LocalAuthority_RevokeWITAuthority_FullMethodName:          operator,

	debugv1.Debug_GetInfo_FullMethodName:         local,
	loggerv1.Logger_GetLogger_FullMethodName:     local,
	loggerv1.Logger_SetLogLevel_FullMethodName:   local,
	loggerv1.Logger_ResetLogLevel_FullMethodName: local,
	grpc_health_v1.Health_Check_FullMethodName:   health,
	grpc_health_v1.Health_List_FullMethodName:    health,
	grpc_health_v1.Health_Watch_FullMethodName:   health,
	feedv1.Feed_Watch_FullMethodName:             agent,

	operatorv1.Operator_StoreInfo_FullMethodName: local,
	operatorv1.Operator_Backup_FullMethodName:    local,
	operatorv1.Operator_Drain_FullMethodName:     local,
}
