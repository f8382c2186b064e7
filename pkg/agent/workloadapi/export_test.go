package workloadapi

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

// Validate is the part of ValidateJWTSVID that takes foreign bytes.
func (s *Service) Validate(now time.Time, req *workload.ValidateJWTSVIDRequest, bundles jwtbundle.Source) (*workload.ValidateJWTSVIDResponse, error) {
	return s.validate(now, req, bundles)
}
