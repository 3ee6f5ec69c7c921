//! What the regression suite shares.
