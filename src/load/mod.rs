//! How busy a service is: the measure by which a balancer chooses.

/// Says how busy a service is.
pub trait Load {
    /// A measure; the smaller, the less busy.
    type Metric: PartialOrd;

    /// How busy the service is now.
    fn load(&self) -> Self::Metric;
}
